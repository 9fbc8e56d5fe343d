// experts, schedule dense_masked: y = (G o sigma(X W^T)) V with G [L,N] the gates, zero where an expert is
// not selected: what three lines of PyTorch do, as two cuBLASLt products. Experts are taken in chunks, so
// that S (fp32) and P (storage dtype) [L, chunk] stay bounded. Between the products, S is read at the
// selected entries only and P is written whole, in fp32 over S. Deterministic: one algorithm per product,
// chunks in order. PKM and PEER run the same with several lists of experts per token (product_key_masked.cu).
#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "core/base/error.hpp"
#include "core/tiling/chunks.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/experts/dense_masked.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void store(float& to, float value) { to = value; }
__device__ __forceinline__ void store(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

/// First k with ids[k] >= bound, by 2^lanes_log2 neighbouring lanes that probe at once. Every lane of the
/// warp must come; those without a search of their own bring a count of 0.
__device__ int group_lower_bound(int lanes_log2, const std::int32_t* ids, int count, std::int64_t bound) {
  const int lanes = 1 << lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const unsigned group = (0xffffffffU >> (32 - lanes)) << ((threadIdx.x % 32) & ~(lanes - 1));
  int begin = 0;
  int end = count;  // the answer lies in [begin, end]
  while (__any_sync(0xffffffffU, begin < end)) {
    const int step = (end - begin + lanes - 1) >> lanes_log2;
    const int probe = begin + lane * step;
    const bool below = probe < end && ids[probe] < bound;
    const int lanes_below = __popc(__ballot_sync(0xffffffffU, below) & group);
    if (begin < end) {
      const int next_end = min(end, begin + lanes_below * step);
      begin += lanes_below == 0 ? 0 : (lanes_below - 1) * step + 1;
      end = next_end;
    }
  }
  return begin;
}

struct MaskArgs {
  const float* s;  ///< [L, leading] scores; not read without them
  void* p;         ///< [L, leading]; may be s
  std::int64_t leading;
  std::int64_t first_expert;
  std::int64_t width;
  unsigned segments;  ///< of a row
  int top_k;
  int lists;
  const std::int32_t* expert_ids;
  const float* gates;
  Activation activation;
};

/// P [L, leading] = G * sigma(S), or G, where the routing selects, zero elsewhere. Columns count experts from
/// first_expert on; `width` of them exist. One block per token and segment of columns. A token's lists are
/// added up one after the other, so that an expert of several has its gates' sum in a fixed order.
template <class T, bool kScored>
__global__ void __launch_bounds__(kThreads) mask_kernel(const MaskArgs args) {
  constexpr int kColumns = static_cast<int>(DenseChunks::kSegmentBytes) / static_cast<int>(sizeof(T));
  constexpr int kPerStore = 16 / static_cast<int>(sizeof(T));
  constexpr int kSearchedLists = 16;  // ranges found at once
  constexpr int kLoadedLists = 4;     // of which pairs are under way at once
  __shared__ __align__(16) float sums[kColumns];
  __shared__ int range[2 * kSearchedLists];
  const std::int64_t token = blockIdx.x / args.segments;
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x % args.segments) * kColumns;
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(kColumns), args.width - first_column));
  const std::int64_t expert_base = args.first_expert + first_column;
  const std::int64_t token_pairs = token * args.lists * args.top_k;
  const std::int32_t* const token_ids = args.expert_ids + token_pairs;
  const float* const token_gates = args.gates + token_pairs;
  const int thread = static_cast<int>(threadIdx.x);

  // A token with a NaN logit may have its ids in any order.
  const auto add = [&](int column, float gate) {
    if (static_cast<unsigned>(column) < static_cast<unsigned>(columns)) {
      sums[column] += gate;
    }
  };

  const int stores = (columns + kPerStore - 1) / kPerStore;
  for (int i = thread; i < stores * kPerStore / 4; i += kThreads) {
    reinterpret_cast<float4*>(sums)[i] = make_float4(0, 0, 0, 0);
  }
  for (int first_list = 0; first_list < args.lists; first_list += kSearchedLists) {
    const int lists = min(args.lists - first_list, kSearchedLists);
    const int lanes_log2 = 2 * lists <= kThreads / 32 ? 5 : 2 * lists <= kThreads / 16 ? 4 : 3;
    const int search = thread >> lanes_log2;  // the begin and the end of each list's columns
    const bool searches = search < 2 * lists;
    const int found = group_lower_bound(
        lanes_log2, token_ids + (searches ? first_list + search / 2 : 0) * std::int64_t{args.top_k},
        searches ? args.top_k : 0, expert_base + search % 2 * columns);
    __syncthreads();  // of the lists before, all are added up; or the sums are cleared
    if (searches) {
      range[search] = found;
    }
    __syncthreads();
    for (int loaded = 0; loaded < lists; loaded += kLoadedLists) {
      int column[kLoadedLists];
      float gate[kLoadedLists];
#pragma unroll
      for (int j = 0; j < kLoadedLists; ++j) {
        const int list = loaded + j;
        const bool mine = list < lists && range[2 * list] + thread < range[2 * list + 1];
        const std::int64_t pair =
            mine ? std::int64_t{first_list + list} * args.top_k + range[2 * list] + thread : 0;
        column[j] = mine ? static_cast<int>(token_ids[pair] - expert_base) : columns;
        gate[j] = mine ? token_gates[pair] : 0.0F;
      }
#pragma unroll
      for (int j = 0; j < kLoadedLists; ++j) {
        const int list = loaded + j;
        if (list >= lists) {
          break;
        }
        add(column[j], gate[j]);
        const std::int64_t list_pairs = std::int64_t{first_list + list} * args.top_k;
        for (int k = range[2 * list] + thread + kThreads; k < range[2 * list + 1]; k += kThreads) {
          add(static_cast<int>(token_ids[list_pairs + k] - expert_base), token_gates[list_pairs + k]);
        }
        __syncthreads();
      }
    }
  }
  // From here on every thread has columns of its own, also where P takes the place of S. leading is a
  // multiple of 16 bytes, so the last store may run past `columns` but not past the row.
  const std::int64_t offset = token * args.leading + first_column;
  const float* const s = args.s + offset;
  T* const p = static_cast<T*>(args.p) + offset;
  for (int i = thread; i < stores; i += kThreads) {
    float* const own = sums + i * kPerStore;
    if constexpr (kScored) {
      unsigned selected = 0;
#pragma unroll
      for (int c = 0; c < kPerStore; ++c) {
        selected |= own[c] != 0.0F ? 1U << c : 0U;
      }
      while (selected != 0) {
        const int c = __ffs(static_cast<int>(selected)) - 1;
        selected &= selected - 1;
        own[c] *= activate(args.activation, s[i * kPerStore + c]);
      }
    }
    __align__(16) T values[kPerStore];
#pragma unroll
    for (int c = 0; c < kPerStore; ++c) {
      store(values[c], own[c]);
    }
    reinterpret_cast<uint4*>(p)[i] = *reinterpret_cast<const uint4*>(values);
  }
}

template <class T, bool kScored>
void launch_mask(std::int64_t num_tokens, MaskArgs args, cudaStream_t stream) {
  constexpr std::int64_t kColumns = DenseChunks::kSegmentBytes / static_cast<std::int64_t>(sizeof(T));
  args.segments = static_cast<unsigned>((args.width + kColumns - 1) / kColumns);
  mask_kernel<T, kScored><<<static_cast<unsigned>(num_tokens * args.segments), kThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

auto choose_mask(Dtype dtype, bool scored) {
  if (dtype == Dtype::kF32) {
    return scored ? launch_mask<float, true> : launch_mask<float, false>;
  }
  return scored ? launch_mask<__nv_bfloat16, true> : launch_mask<__nv_bfloat16, false>;
}

/// sums[part] += P V of one chunk, P [L, width]; the first chunk writes.
void combine_chunk(CublasLt& blas, const DenseMasked& masked, const std::byte* p, std::int64_t leading,
                   const std::byte* v, std::int64_t width, bool first, float* sums, cudaStream_t stream) {
  const LayerShape& shape = masked.shape;
  const std::int64_t element = dtype_bytes(shape.dtype);
  Gemm combine;
  combine.m = shape.num_tokens;
  combine.n = shape.hidden_size;
  combine.k = DenseSplits::part(width, masked.parts);
  combine.transpose_b = false;
  combine.in = shape.dtype;
  combine.out = Dtype::kF32;
  combine.a = p;
  combine.lda = leading;
  combine.b = v;
  combine.d = sums;
  combine.beta = first ? 0.0F : 1.0F;
  if (masked.parts > 1) {
    combine.batch = masked.parts;
    combine.stride_a = combine.k;
    combine.stride_b = combine.k * shape.hidden_size;
    combine.stride_d = shape.num_tokens * shape.hidden_size;
  }
  if (combine.k > 0) {  // a last chunk may be narrower than a part
    blas.run(combine, stream);
  }
  const std::int64_t done = combine.k * masked.parts;
  if (done == width) {
    return;
  }
  combine.k = width - done;
  combine.a = p + done * element;
  combine.b = v + done * shape.hidden_size * element;
  combine.beta = 1.0F;
  combine.batch = 1;
  combine.stride_a = combine.stride_b = combine.stride_d = 0;
  blas.run(combine, stream);
}

}  // namespace

void launch_dense_masked(CublasLt& blas, const DenseMasked& masked, const void* hidden_states,
                         const DeviceWeights& weights, DeviceRouting routing, void* workspace, float* sums,
                         cudaStream_t stream) {
  const LayerShape& shape = masked.shape;
  const DenseChunks plan = masked.chunks();
  auto* const p = static_cast<std::byte*>(workspace) + plan.p_offset;
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(shape.dtype);
  Gemm scores;
  scores.m = shape.num_tokens;
  scores.k = shape.hidden_size;
  scores.transpose_b = true;
  scores.in = shape.dtype;
  scores.out = DenseChunks::kScores;
  scores.a = hidden_states;
  scores.d = workspace;
  scores.ldd = plan.experts;
  MaskArgs mask{};
  mask.s = static_cast<const float*>(workspace);
  mask.p = p;
  mask.leading = plan.experts;
  mask.top_k = static_cast<int>(shape.top_k);
  mask.lists = static_cast<int>(masked.lists);
  mask.expert_ids = routing.expert_ids;
  mask.gates = routing.gates;
  mask.activation = shape.activation;
  const auto launch = choose_mask(shape.dtype, masked.scored);
  for (std::int64_t first = 0; first < shape.num_experts(); first += plan.experts) {
    const std::int64_t width = std::min(plan.experts, shape.num_experts() - first);
    if (masked.scored) {
      scores.n = width;
      scores.b = static_cast<const std::byte*>(weights.w_in) + first * row_bytes;
      blas.run(scores, stream);
    }
    mask.first_expert = first;
    mask.width = width;
    launch(shape.num_tokens, mask, stream);
    combine_chunk(blas, masked, p, plan.experts,
                  static_cast<const std::byte*>(weights.w_out) + first * row_bytes, width, first == 0, sums,
                  stream);
  }
}

std::int64_t dense_masked_workspace_bytes(const LayerShape& shape) { return DenseChunks::plan(shape).bytes; }

void launch_experts_dense_masked(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                 const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                 float* y, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  launch_dense_masked(blas, {.shape = shape}, hidden_states, weights, routing, workspace, y, stream);
}

}  // namespace moescope::cuda
