// experts_dgrad and experts_wgrad, schedule dense_masked: what autograd makes of three lines of PyTorch, as
// cuBLASLt products over chunks of experts. S = X W^T, U = dY V^T, dX += Q W; dW = Q^T X, dV = P^T dY, with P
// and Q [L,N] zero where nothing is selected. Between the products one kernel goes over the pairs: S and U
// are read there alone, P and Q are cleared and set. Chunks bound the memory; every element of dW and dV
// belongs to one product. Deterministic: one algorithm per product, chunks in order.
#include <cuda_bf16.h>

#include <algorithm>
#include <cstddef>

#include "core/base/error.hpp"
#include "core/tiling/chunks.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/device/activation_slope.cuh"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 8192;

/// Columns of a chunk, also the leading dimension, for `column_bytes` a token.
std::int64_t chunk_experts(const LayerShape& shape, std::int64_t column_bytes) {
  constexpr std::int64_t kGranularity = DenseChunks::kGranularity;
  const auto ceil_div = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  const std::int64_t most =
      std::max(DenseChunks::kMaxWorkspaceBytes / (shape.num_tokens * column_bytes) / kGranularity,
               std::int64_t{1}) *
      kGranularity;
  const std::int64_t chunks = ceil_div(shape.num_experts(), most);
  return ceil_div(ceil_div(shape.num_experts(), chunks), kGranularity) * kGranularity;
}

/// S and U in fp32, Q in storage.
std::int64_t dgrad_column_bytes(const LayerShape& shape) { return 8 + dtype_bytes(shape.dtype); }
/// P and Q in storage.
std::int64_t wgrad_column_bytes(const LayerShape& shape) { return 2 * dtype_bytes(shape.dtype); }

unsigned num_blocks(std::int64_t elements) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((elements + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

struct ChunkArgs {
  const std::int32_t* expert_ids;
  const float* gates;
  DevicePairGradients pairs;
  const float* saved;  ///< z of pairs; null: from s
  float* save;
  const float* s;  ///< [L, lead]
  const float* u;  ///< [L, lead]
  void* p;         ///< [L, lead]
  void* q;         ///< [L, lead]
  std::int64_t lead;
  std::int64_t first_expert;
  std::int64_t width;
  std::int64_t num_pairs;
  std::int64_t top_k;
  Activation activation;
};

/// Calls f(pair, place in the chunk's matrices) for every pair of the chunk.
template <class F>
__device__ __forceinline__ void for_each_pair(const ChunkArgs& args, const F& f) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t pair = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; pair < args.num_pairs;
       pair += stride) {
    const std::int64_t column = args.expert_ids[pair] - args.first_expert;
    if (column >= 0 && column < args.width) {
      f(pair, pair / args.top_k * args.lead + column);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) pair_gradients_kernel(const ChunkArgs args) {
  for_each_pair(args, [&](std::int64_t pair, std::int64_t place) {
    const float z = args.saved != nullptr ? args.saved[pair] : args.s[place];
    const float u = args.u[place];
    const float gate = args.gates[pair];
    const ActivationValue a = activate_with_slope(args.activation, z);
    const float q = u * gate * a.slope;
    args.pairs.gates[pair] = u * a.value;
    args.pairs.p[pair] = gate * a.value;
    args.pairs.q[pair] = q;
    if (args.save != nullptr) {
      args.save[pair] = z;
    }
    static_cast<T*>(args.q)[place] = static_cast<T>(q);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) scatter_kernel(const ChunkArgs args) {
  for_each_pair(args, [&](std::int64_t pair, std::int64_t place) {
    static_cast<T*>(args.p)[place] = static_cast<T>(args.pairs.p[pair]);
    static_cast<T*>(args.q)[place] = static_cast<T>(args.pairs.q[pair]);
  });
}

void run(void (*bf16)(ChunkArgs), void (*f32)(ChunkArgs), Dtype dtype, const ChunkArgs& args,
         cudaStream_t stream) {
  auto* const kernel = dtype == Dtype::kBF16 ? bf16 : f32;
  kernel<<<num_blocks(args.num_pairs), kThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

ChunkArgs args_of(const LayerShape& shape, DeviceRouting routing, DevicePairGradients pairs) {
  ChunkArgs args{};
  args.expert_ids = routing.expert_ids;
  args.gates = routing.gates;
  args.pairs = pairs;
  args.num_pairs = shape.num_pairs();
  args.top_k = shape.top_k;
  args.activation = shape.activation;
  return args;
}

const std::byte* rows_of(const void* matrix, std::int64_t first, const LayerShape& shape) {
  return static_cast<const std::byte*>(matrix) + first * shape.hidden_size * dtype_bytes(shape.dtype);
}

}  // namespace

std::int64_t dense_masked_dgrad_workspace_bytes(const LayerShape& shape) {
  return shape.num_tokens * dgrad_column_bytes(shape) * chunk_experts(shape, dgrad_column_bytes(shape));
}

void launch_experts_dgrad_dense_masked(CublasLt& blas, const LayerShape& shape, const DgradInputs& inputs,
                                       const DeviceWeights& weights, DeviceRouting routing,
                                       DevicePairGradients pairs, void* workspace, bool adds, float* dx,
                                       cudaStream_t stream) {
  const StageRange range(Stage::kExpertsDgrad);
  const std::int64_t lead = chunk_experts(shape, dgrad_column_bytes(shape));
  const std::int64_t matrix = shape.num_tokens * lead;
  ChunkArgs args = args_of(shape, routing, pairs);
  args.saved = inputs.saved;
  args.save = inputs.save;
  auto* const s = static_cast<float*>(workspace);
  args.s = s;
  args.u = s + matrix;
  args.q = s + 2 * matrix;
  args.lead = lead;
  Gemm scores;
  scores.m = shape.num_tokens;
  scores.k = shape.hidden_size;
  scores.in = shape.dtype;
  scores.ldd = lead;
  Gemm input;
  input.m = shape.num_tokens;
  input.n = shape.hidden_size;
  input.transpose_b = false;
  input.in = shape.dtype;
  input.a = args.q;
  input.lda = lead;
  input.d = dx;
  input.beta = adds ? 1.0F : 0.0F;
  for (std::int64_t first = 0; first < shape.num_experts(); first += lead) {
    args.first_expert = first;
    args.width = std::min(lead, shape.num_experts() - first);
    scores.n = args.width;
    if (inputs.saved == nullptr) {
      scores.a = inputs.hidden_states;
      scores.b = rows_of(weights.w_in, first, shape);
      scores.d = s;
      blas.run(scores, stream);
    }
    scores.a = inputs.dy;
    scores.b = rows_of(weights.w_out, first, shape);
    scores.d = s + matrix;
    blas.run(scores, stream);
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(args.q, 0, static_cast<std::size_t>(matrix * dtype_bytes(shape.dtype)), stream));
    run(pair_gradients_kernel<__nv_bfloat16>, pair_gradients_kernel<float>, shape.dtype, args, stream);
    input.k = args.width;
    input.b = rows_of(weights.w_in, first, shape);
    blas.run(input, stream);
    input.beta = 1;
  }
}

std::int64_t dense_masked_wgrad_workspace_bytes(const LayerShape& shape) {
  return shape.num_tokens * wgrad_column_bytes(shape) * chunk_experts(shape, wgrad_column_bytes(shape));
}

void launch_experts_wgrad_dense_masked(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                       const void* dy, DeviceRouting routing, DevicePairGradients pairs,
                                       void* workspace, WgradOutput output, cudaStream_t stream) {
  const StageRange range(Stage::kExpertsWgrad);
  const std::int64_t element = dtype_bytes(shape.dtype);
  const std::int64_t lead = chunk_experts(shape, wgrad_column_bytes(shape));
  const std::int64_t matrix_bytes = shape.num_tokens * lead * element;
  ChunkArgs args = args_of(shape, routing, pairs);
  args.p = workspace;
  args.q = static_cast<std::byte*>(workspace) + matrix_bytes;
  args.lead = lead;
  Gemm gradient;
  gradient.n = shape.hidden_size;
  gradient.k = shape.num_tokens;
  gradient.transpose_a = true;
  gradient.transpose_b = false;
  gradient.in = shape.dtype;
  gradient.out = output.dtype;
  gradient.lda = lead;
  gradient.beta = output.form == GradientForm::kAdded ? 1.0F : 0.0F;
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(output.dtype);
  for (std::int64_t first = 0; first < shape.num_experts(); first += lead) {
    args.first_expert = first;
    args.width = std::min(lead, shape.num_experts() - first);
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(args.p, 0, static_cast<std::size_t>(2 * matrix_bytes), stream));
    run(scatter_kernel<__nv_bfloat16>, scatter_kernel<float>, shape.dtype, args, stream);
    gradient.m = args.width;
    gradient.a = args.q;
    gradient.b = hidden_states;
    gradient.d = static_cast<std::byte*>(output.w_in) + first * row_bytes;
    blas.run(gradient, stream);
    gradient.a = args.p;
    gradient.b = dy;
    gradient.d = static_cast<std::byte*>(output.w_out) + first * row_bytes;
    blas.run(gradient, stream);
  }
}

}  // namespace moescope::cuda
