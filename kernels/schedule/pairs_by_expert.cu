// Pairs sorted by expert, for the owner pass of experts_wgrad: a stable radix sort of (expert, pair), so that
// an expert's pairs stand in CSR order, tokens ascending; offsets by binary search in the sorted experts.
// Beside it the list of experts that have pairs, and how many each has.
#include <thrust/iterator/counting_iterator.h>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_select.cuh>

#include <algorithm>
#include <bit>
#include <limits>

#include "core/base/error.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cub_storage.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 4096;
constexpr std::int64_t kAlignment = 256;

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

unsigned num_blocks(std::int64_t elements) {
  return static_cast<unsigned>(std::clamp<std::int64_t>((elements + kThreads - 1) / kThreads, 1, kMaxBlocks));
}

/// Bound of CUB's temporary storage, as in schedule_plan.cpp: a sort's look-back or spine, a selection's
/// tiles. The launchers check the real need against it.
std::int64_t cub_bytes_bound(std::int64_t num_pairs, std::int64_t num_experts) {
  return aligned(num_pairs / 2 + (num_pairs + num_experts) / 8 + (std::int64_t{4} << 20));
}

/// Of a selection alone.
std::int64_t select_bytes_bound(std::int64_t num_experts) {
  return aligned(num_experts / 8 + (std::int64_t{64} << 10));
}

void require_narrow(const LayerShape& shape) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (shape.num_pairs() > kMost) {
    throw InvalidArgument("num_tokens * top_k", fmt::to_string(shape.num_pairs()),
                          "must be below 2^31 for the backward on the GPU");
  }
  if (shape.num_experts() >= kMost) {
    throw InvalidArgument("num_experts", fmt::to_string(shape.num_experts()),
                          "must be below 2^31 - 1 for the backward on the GPU");
  }
}

__global__ void __launch_bounds__(kThreads)
    list_pairs_kernel(std::int64_t num_pairs, const std::int32_t* __restrict__ expert_ids,
                      std::uint32_t* __restrict__ keys, std::int32_t* __restrict__ pairs) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t p = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; p < num_pairs; p += stride) {
    keys[p] = static_cast<std::uint32_t>(expert_ids[p]);
    pairs[p] = static_cast<std::int32_t>(p);
  }
}

/// offsets[e]: first sorted place whose expert is e or more.
__global__ void __launch_bounds__(kThreads)
    offsets_kernel(std::int32_t num_pairs, std::int32_t num_experts, const std::uint32_t* __restrict__ keys,
                   std::int32_t* __restrict__ offsets) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t e = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; e <= num_experts; e += stride) {
    std::int32_t low = 0;
    std::int32_t high = num_pairs;
    while (low < high) {
      const std::int32_t middle = low + (high - low) / 2;
      if (keys[middle] < static_cast<std::uint32_t>(e)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    offsets[e] = low;
  }
}

__global__ void __launch_bounds__(kThreads)
    count_kernel(std::int64_t num_pairs, const std::int32_t* __restrict__ expert_ids,
                 std::int32_t* __restrict__ loads) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t p = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; p < num_pairs; p += stride) {
    atomicAdd(loads + expert_ids[p], 1);
  }
}

/// touched_offsets[j] = offsets[touched[j]], and behind the last one num_pairs.
__global__ void __launch_bounds__(kThreads)
    touched_offsets_kernel(std::int32_t num_pairs, const std::int32_t* __restrict__ offsets,
                           const std::int32_t* __restrict__ touched,
                           const std::int32_t* __restrict__ touched_count,
                           std::int32_t* __restrict__ touched_offsets) {
  const std::int32_t count = *touched_count;
  const auto stride = static_cast<std::int32_t>(gridDim.x * kThreads);
  for (auto j = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x); j <= count; j += stride) {
    touched_offsets[j] = j < count ? offsets[touched[j]] : num_pairs;
  }
}

struct HasPairs {
  const std::int32_t* offsets;
  __device__ bool operator()(std::int32_t expert) const { return offsets[expert + 1] != offsets[expert]; }
};

struct HasLoad {
  const std::int32_t* loads;
  __device__ bool operator()(std::int32_t expert) const { return loads[expert] != 0; }
};

template <class Has>
void list_touched(std::int32_t num_experts, const Has& has, std::int32_t* touched, std::int32_t* count,
                  void* storage, std::int64_t bound, cudaStream_t stream) {
  with_cub_storage("listing touched experts", storage, bound, [&](void* temporary, std::size_t& bytes) {
    return cub::DeviceSelect::If(temporary, bytes, thrust::counting_iterator<std::int32_t>(0), touched, count,
                                 num_experts, has, stream);
  });
}

}  // namespace

std::int64_t pairs_by_expert_workspace_bytes(const LayerShape& shape) {
  // Experts twice, pairs once beside the result.
  return 3 * aligned(shape.num_pairs() * 4) + cub_bytes_bound(shape.num_pairs(), shape.num_experts());
}

void launch_pairs_by_expert(const LayerShape& shape, DeviceRouting routing, DevicePairsByExpert sorted,
                            void* workspace, cudaStream_t stream) {
  require_narrow(shape);
  const std::int64_t num_pairs = shape.num_pairs();
  const auto num_experts = static_cast<std::int32_t>(shape.num_experts());
  auto* const base = static_cast<std::byte*>(workspace);
  const std::int64_t array = aligned(num_pairs * 4);
  auto* const keys_a = reinterpret_cast<std::uint32_t*>(base);
  auto* const keys_b = reinterpret_cast<std::uint32_t*>(base + array);
  auto* const other = reinterpret_cast<std::int32_t*>(base + 2 * array);
  void* const storage = base + 3 * array;
  const std::int64_t bound = cub_bytes_bound(num_pairs, num_experts);

  // Passes of 8 bits, each into the other buffer: begin where the last one ends in the result.
  const int bits = std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint32_t>(num_experts - 1))));
  const bool even_passes = (bits + 7) / 8 % 2 == 0;
  cub::DoubleBuffer<std::uint32_t> keys(keys_a, keys_b);
  cub::DoubleBuffer<std::int32_t> pairs(even_passes ? sorted.pairs : other,
                                        even_passes ? other : sorted.pairs);
  list_pairs_kernel<<<num_blocks(num_pairs), kThreads, 0, stream>>>(num_pairs, routing.expert_ids,
                                                                    keys.Current(), pairs.Current());
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  with_cub_storage("sorting the pairs", storage, bound, [&](void* temporary, std::size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(temporary, bytes, keys, pairs,
                                           static_cast<std::int32_t>(num_pairs), 0, bits, stream);
  });
  if (pairs.Current() != sorted.pairs) {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(sorted.pairs, pairs.Current(),
                                        static_cast<std::size_t>(num_pairs) * 4, cudaMemcpyDeviceToDevice,
                                        stream));
  }
  offsets_kernel<<<num_blocks(num_experts + std::int64_t{1}), kThreads, 0, stream>>>(
      static_cast<std::int32_t>(num_pairs), num_experts, keys.Current(), sorted.offsets);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  list_touched(num_experts, HasPairs{sorted.offsets}, sorted.touched, sorted.touched_count, storage, bound,
               stream);
  if (sorted.touched_offsets != nullptr) {
    touched_offsets_kernel<<<num_blocks(std::min<std::int64_t>(num_experts, num_pairs) + 1), kThreads, 0,
                             stream>>>(static_cast<std::int32_t>(num_pairs), sorted.offsets, sorted.touched,
                                       sorted.touched_count, sorted.touched_offsets);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
  }
}

std::int64_t touched_experts_workspace_bytes(const LayerShape& shape) {
  return select_bytes_bound(shape.num_experts());
}

void launch_touched_experts(const LayerShape& shape, const std::int32_t* loads, std::int32_t* touched,
                            std::int32_t* count, void* workspace, cudaStream_t stream) {
  require_narrow(shape);
  list_touched(static_cast<std::int32_t>(shape.num_experts()), HasLoad{loads}, touched, count, workspace,
               select_bytes_bound(shape.num_experts()), stream);
}

void launch_expert_loads(const LayerShape& shape, DeviceRouting routing, std::int32_t* loads,
                         cudaStream_t stream) {
  count_kernel<<<num_blocks(shape.num_pairs()), kThreads, 0, stream>>>(shape.num_pairs(), routing.expert_ids,
                                                                       loads);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
