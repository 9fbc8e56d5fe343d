// experts, schedule dense_masked: y = (G o sigma(X W^T)) V with G [L,N] the gates, zero where an expert is
// not selected: what three lines of PyTorch do, as two cuBLASLt products. Experts are taken in chunks, so
// that S and P [L, chunk] stay bounded; both live in one buffer in storage dtype. Between the products, S is
// read at the selected entries only and overwritten by P. Deterministic: one algorithm per product, chunks in
// order.
#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "core/chunks.hpp"
#include "core/error.hpp"
#include "kernels/activation.cuh"
#include "kernels/cublas_lt.hpp"
#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"
#include "kernels/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ float as_float(float value) { return value; }
__device__ __forceinline__ float as_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ __forceinline__ void store(float& to, float value) { to = value; }
__device__ __forceinline__ void store(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

/// First k with ids[k] >= bound, by a whole warp: 32 probes a step.
__device__ std::int64_t warp_lower_bound(const std::int32_t* ids, std::int64_t count, std::int64_t bound) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::int64_t begin = 0;
  std::int64_t end = count;  // the answer lies in [begin, end]
  while (begin < end) {
    const std::int64_t step = (end - begin + 31) / 32;
    const std::int64_t probe = begin + lane * step;
    const bool below = probe < end && ids[probe] < bound;
    const int lanes_below = __popc(__ballot_sync(0xffffffffU, below));
    if (lanes_below == 0) {
      return begin;
    }
    const std::int64_t next_end = min(end, begin + lanes_below * step);
    begin += (lanes_below - 1) * step + 1;
    end = next_end;
  }
  return begin;
}

/// P [L, leading] = gate * sigma(S) where the routing selects, zero elsewhere; `p` may be `s` itself. Columns
/// count experts from first_expert on; `width` of them exist. One block per token and segment of columns.
template <class S, class T>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const S* s, T* p, std::int64_t leading, std::int64_t first_expert, std::int64_t width,
                unsigned segments, std::int64_t top_k, const std::int32_t* expert_ids, const float* gates,
                Activation activation) {
  constexpr int kColumns = static_cast<int>(DenseChunks::kSegmentBytes) / static_cast<int>(sizeof(T));
  __shared__ __align__(16) T row[kColumns];
  __shared__ std::int64_t range[2];
  const std::int64_t token = blockIdx.x / segments;
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x % segments) * kColumns;
  const std::int64_t columns = min(static_cast<std::int64_t>(kColumns), width - first_column);
  const std::int64_t expert_base = first_expert + first_column;
  const std::int32_t* ids = expert_ids + token * top_k;
  const int thread = static_cast<int>(threadIdx.x);

  const int warp = thread / 32;
  if (warp < 2) {
    const std::int64_t found = warp_lower_bound(ids, top_k, expert_base + warp * columns);
    if (thread % 32 == 0) {
      range[warp] = found;
    }
  }
  constexpr int kPerStore = 16 / static_cast<int>(sizeof(T));
  const int stores = static_cast<int>((columns + kPerStore - 1) / kPerStore);
  for (int i = thread; i < stores; i += kThreads) {
    reinterpret_cast<uint4*>(row)[i] = uint4{0, 0, 0, 0};
  }
  __syncthreads();
  const std::int64_t offset = token * leading + first_column;
  for (std::int64_t k = range[0] + thread; k < range[1]; k += kThreads) {
    const auto column = static_cast<int>(ids[k] - expert_base);
    store(row[column], gates[token * top_k + k] * activate(activation, as_float(s[offset + column])));
  }
  __syncthreads();
  // leading is a multiple of 16 bytes, so the last store may run past `columns` but not past the row.
  for (int i = thread; i < stores; i += kThreads) {
    reinterpret_cast<uint4*>(p + offset)[i] = reinterpret_cast<const uint4*>(row)[i];
  }
}

template <class S, class T>
void launch_mask(const LayerShape& shape, DeviceRouting routing, const void* s, void* p, std::int64_t leading,
                 std::int64_t first_expert, std::int64_t width, cudaStream_t stream) {
  constexpr std::int64_t kColumns = DenseChunks::kSegmentBytes / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t segments = (width + kColumns - 1) / kColumns;
  mask_kernel<S, T><<<static_cast<unsigned>(shape.num_tokens * segments), kThreads, 0, stream>>>(
      static_cast<const S*>(s), static_cast<T*>(p), leading, first_expert, width,
      static_cast<unsigned>(segments), shape.top_k, routing.expert_ids, routing.gates, shape.activation);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

std::int64_t dense_masked_workspace_bytes(const LayerShape& shape) { return DenseChunks::plan(shape).bytes; }

void launch_experts_dense_masked(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                 const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                 float* y, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  const DenseChunks plan = DenseChunks::plan(shape);
  void* p = static_cast<std::byte*>(workspace) + plan.p_offset;
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(shape.dtype);
  Gemm scores;
  scores.m = shape.num_tokens;
  scores.k = shape.hidden_size;
  scores.transpose_b = true;
  scores.in = shape.dtype;
  scores.out = plan.scores;
  scores.a = hidden_states;
  scores.d = workspace;
  scores.ldd = plan.experts;
  Gemm combine;
  combine.m = shape.num_tokens;
  combine.n = shape.hidden_size;
  combine.transpose_b = false;
  combine.in = shape.dtype;
  combine.out = Dtype::kF32;
  combine.a = p;
  combine.lda = plan.experts;
  combine.d = y;
  for (std::int64_t first = 0; first < shape.num_experts(); first += plan.experts) {
    const std::int64_t width = std::min(plan.experts, shape.num_experts() - first);
    scores.n = width;
    scores.b = static_cast<const std::byte*>(weights.w_in) + first * row_bytes;
    blas.run(scores, stream);
    const auto mask = shape.dtype == Dtype::kF32   ? launch_mask<float, float>
                      : plan.scores == Dtype::kF32 ? launch_mask<float, __nv_bfloat16>
                                                   : launch_mask<__nv_bfloat16, __nv_bfloat16>;
    mask(shape, routing, workspace, p, plan.experts, first, width, stream);
    combine.k = width;
    combine.b = static_cast<const std::byte*>(weights.w_out) + first * row_bytes;
    combine.beta = first == 0 ? 0.0F : 1.0F;
    blas.run(combine, stream);
  }
}

}  // namespace moescope::cuda
