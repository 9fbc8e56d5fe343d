// The lists of pairs_by_expert.cu for few tokens. Each expert has a bit for every token that selected it. One
// scan over the experts counts pairs and touched experts together; a pair's place among its expert's is the
// number of bits below its token's. Nothing is sorted, and nothing depends on an order of atomics.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <cub/device/device_scan.cuh>

#include <algorithm>

#include "core/base/error.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cub_storage.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kFewThreads = 256;
constexpr std::int64_t kFewMaxBlocks = 4096;
/// A bit for each of them and every expert: at 320 x 320 experts 3 MB.
constexpr std::int64_t kMostFewTokens = 256;
constexpr std::int64_t kFewAlignment = 256;

std::int64_t few_aligned(std::int64_t bytes) {
  return (bytes + kFewAlignment - 1) / kFewAlignment * kFewAlignment;
}

unsigned few_blocks(std::int64_t elements) {
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((elements + kFewThreads - 1) / kFewThreads, 1, kFewMaxBlocks));
}

/// What a scan adds up: pairs below, touched experts above.
using Counts = std::uint64_t;
constexpr int kTouchedShift = 32;

struct FewArgs {
  const std::int32_t* expert_ids;
  unsigned* bits;  ///< [N, words]
  Counts* before;  ///< [N+1] of all experts before
  DevicePairsByExpert sorted;
  std::int32_t words;
  std::int32_t top_k;
  std::int32_t num_pairs;
  std::int32_t num_experts;
};

__global__ void __launch_bounds__(kFewThreads) mark_kernel(const FewArgs args) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * kFewThreads);
  for (auto p = static_cast<std::int32_t>(blockIdx.x * kFewThreads + threadIdx.x); p < args.num_pairs;
       p += stride) {
    const std::int32_t token = p / args.top_k;
    atomicOr(args.bits + std::int64_t{args.expert_ids[p]} * args.words + token / 32, 1U << token % 32);
  }
}

struct CountsOf {
  const unsigned* bits;
  std::int32_t words;
  std::int32_t num_experts;
  __device__ Counts operator()(std::int32_t expert) const {
    int pairs = 0;
    for (std::int32_t w = 0; w < words && expert < num_experts; ++w) {
      pairs += __popc(bits[std::int64_t{expert} * words + w]);
    }
    return static_cast<Counts>(pairs) | static_cast<Counts>(pairs > 0) << kTouchedShift;
  }
};

__device__ __forceinline__ std::int32_t pairs_before(Counts counts) {
  return static_cast<std::int32_t>(counts & 0xffffffffU);
}

/// Pairs to their places, and experts to theirs.
__global__ void __launch_bounds__(kFewThreads) place_kernel(const FewArgs args) {
  const auto stride = static_cast<std::int32_t>(gridDim.x * kFewThreads);
  const auto first = static_cast<std::int32_t>(blockIdx.x * kFewThreads + threadIdx.x);
  for (std::int32_t p = first; p < args.num_pairs; p += stride) {
    const std::int32_t expert = args.expert_ids[p];
    const std::int32_t token = p / args.top_k;
    const unsigned* const bits = args.bits + std::int64_t{expert} * args.words;
    std::int32_t place = pairs_before(args.before[expert]);
    for (std::int32_t w = 0; w < token / 32; ++w) {
      place += __popc(bits[w]);
    }
    place += __popc(bits[token / 32] & ((1U << token % 32) - 1));
    args.sorted.pairs[place] = p;
  }
  for (std::int32_t e = first; e <= args.num_experts; e += stride) {
    const Counts counts = args.before[e];
    const std::int32_t begin = pairs_before(counts);
    const auto at = static_cast<std::int32_t>(counts >> kTouchedShift);
    args.sorted.offsets[e] = begin;
    const bool last = e == args.num_experts;
    if (last) {
      *args.sorted.touched_count = at;
    } else if (pairs_before(args.before[e + 1]) == begin) {
      continue;
    } else {
      args.sorted.touched[at] = e;
    }
    if (args.sorted.touched_offsets != nullptr) {
      args.sorted.touched_offsets[at] = begin;
    }
  }
}

std::int32_t words_of(const LayerShape& shape) {
  return static_cast<std::int32_t>((shape.num_tokens + 31) / 32);
}
std::int64_t bits_bytes(const LayerShape& shape) {
  return few_aligned(shape.num_experts() * words_of(shape) * 4);
}
std::int64_t counts_bytes(const LayerShape& shape) {
  return few_aligned((shape.num_experts() + 1) * static_cast<std::int64_t>(sizeof(Counts)));
}
/// Bound of a scan's temporary storage: the state of its tiles.
std::int64_t scan_bytes_bound(const LayerShape& shape) {
  return few_aligned(shape.num_experts() / 8 + (std::int64_t{64} << 10));
}

}  // namespace

bool pairs_are_few(const LayerShape& shape) {
  return shape.num_tokens <= kMostFewTokens && shape.num_pairs() < std::int64_t{1} << 31U &&
         shape.num_experts() < (std::int64_t{1} << 31U) - 1;
}

std::int64_t few_pairs_by_expert_workspace_bytes(const LayerShape& shape) {
  return bits_bytes(shape) + counts_bytes(shape) + scan_bytes_bound(shape);
}

void launch_few_pairs_by_expert(const LayerShape& shape, DeviceRouting routing, DevicePairsByExpert sorted,
                                void* workspace, cudaStream_t stream) {
  if (!pairs_are_few(shape)) {
    throw InvalidArgument("num_tokens", fmt::to_string(shape.num_tokens),
                          fmt::format("must be at most {} for lists without a sort", kMostFewTokens));
  }
  auto* const base = static_cast<std::byte*>(workspace);
  const FewArgs args{.expert_ids = routing.expert_ids,
                     .bits = reinterpret_cast<unsigned*>(base),
                     .before = reinterpret_cast<Counts*>(base + bits_bytes(shape)),
                     .sorted = sorted,
                     .words = words_of(shape),
                     .top_k = static_cast<std::int32_t>(shape.top_k),
                     .num_pairs = static_cast<std::int32_t>(shape.num_pairs()),
                     .num_experts = static_cast<std::int32_t>(shape.num_experts())};
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(args.bits, 0, static_cast<std::size_t>(bits_bytes(shape)), stream));
  mark_kernel<<<few_blocks(args.num_pairs), kFewThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  const auto counts = thrust::make_transform_iterator(thrust::counting_iterator<std::int32_t>(0),
                                                      CountsOf{args.bits, args.words, args.num_experts});
  with_cub_storage("counting pairs of experts", base + bits_bytes(shape) + counts_bytes(shape),
                   scan_bytes_bound(shape), [&](void* temporary, std::size_t& bytes) {
                     return cub::DeviceScan::ExclusiveSum(temporary, bytes, counts, args.before,
                                                          args.num_experts + 1, stream);
                   });
  place_kernel<<<few_blocks(std::max(args.num_pairs, args.num_experts + 1)), kFewThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
