// Stage schedule: expert_centric (paper section 2.3) and staircase, built on the device.
//
// Every pair gets the index of its work item as a key: the rank of its expert among the active ones divided
// by B (groups), or a strip of its token's minimal cover (schedule_cover.cuh). A stable radix sort of (key,
// pair id) then gives the order of execution: items ascending, pairs of an item in CSR order, hence tokens
// ascending. Where the item or the token changes an entry begins. Counts stay on the device; all launches
// depend on the shape alone.
#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>

#include <algorithm>
#include <bit>
#include <cstddef>

#include "core/base/error.hpp"
#include "core/tiling/tile_config.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cub_storage.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"
#include "kernels/schedule/schedule_cover.cuh"
#include "kernels/schedule/schedule_plan.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

int num_blocks(std::int64_t elements) {
  return static_cast<int>(std::clamp<std::int64_t>(ceil_div(elements, kThreads), 1, kMaxScheduleBlocks));
}

__global__ void __launch_bounds__(kThreads)
    flag_experts_kernel(std::int64_t num_pairs, const std::int32_t* __restrict__ expert_ids,
                        std::int32_t* __restrict__ flags) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t p = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; p < num_pairs; p += stride) {
    flags[expert_ids[p]] = 1;
  }
}

/// Keys of pairs in groups, the pair ids to sort, the list of experts in groups, and the counts.
/// ranks [N+1]: number of flagged experts before each. kAllGroups: keys are not yet written.
template <class Key, bool kAllGroups>
__global__ void __launch_bounds__(kThreads)
    group_keys_kernel(std::int64_t num_pairs, std::int32_t num_experts, std::int64_t first_group,
                      std::int64_t group_size, Key no_staircase, const std::int32_t* __restrict__ expert_ids,
                      const std::int32_t* __restrict__ ranks, Key* __restrict__ keys,
                      std::int32_t* __restrict__ pair_ids, std::int32_t* __restrict__ group_experts,
                      std::int64_t* __restrict__ counts) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t p = first; p < num_pairs; p += stride) {
    if (kAllGroups || keys[p] == no_staircase) {
      keys[p] = static_cast<Key>(first_group + ranks[expert_ids[p]] / group_size);
    }
    pair_ids[p] = static_cast<std::int32_t>(p);
  }
  for (std::int64_t e = first; e < num_experts; e += stride) {
    if (ranks[e + 1] != ranks[e]) {
      group_experts[ranks[e]] = static_cast<std::int32_t>(e);
    }
  }
  if (first == 0) {
    const std::int64_t experts = ranks[num_experts];
    counts[0] = first_group + (experts + group_size - 1) / group_size;
    counts[2] = experts;
  }
}

/// True for a sorted position whose item or token differs from the one before.
template <class Key>
struct EntryBegins {
  const Key* keys;
  const std::int32_t* pair_ids;
  std::int32_t top_k;

  __device__ bool operator()(std::int32_t q) const {
    return q == 0 || keys[q] != keys[q - 1] || pair_ids[q] / top_k != pair_ids[q - 1] / top_k;
  }
};

/// Tokens of the entries, the end of the last entry, and the first entry of every item (binary search: items
/// without entries leave no trace in the entries).
template <class Key>
__global__ void __launch_bounds__(kThreads)
    entries_kernel(std::int64_t num_pairs, std::int32_t top_k, std::int64_t max_items,
                   const Key* __restrict__ keys, const std::int32_t* __restrict__ pair_ids,
                   std::int32_t* __restrict__ entry_pair_offsets, std::int32_t* __restrict__ entry_tokens,
                   std::int64_t* __restrict__ item_entry_offsets, const std::int64_t* __restrict__ counts) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  const std::int64_t first = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t num_entries = counts[1];
  for (std::int64_t i = first; i <= max_items; i += stride) {
    std::int64_t low = 0;
    std::int64_t high = num_entries;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (keys[entry_pair_offsets[middle]] < i) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    item_entry_offsets[i] = low;
  }
  for (std::int64_t e = first; e < num_entries; e += stride) {
    entry_tokens[e] = pair_ids[entry_pair_offsets[e]] / top_k;
  }
  if (first == 0) {
    entry_pair_offsets[num_entries] = static_cast<std::int32_t>(num_pairs);
  }
}

/// Tiles of an item; 0 behind the last, so that an exclusive sum over max_items + 1 ends in the total.
struct TilesOfItem {
  const std::int64_t* item_entry_offsets;
  std::int64_t max_items;

  __device__ std::int64_t operator()(std::int64_t item) const {
    return item == max_items
               ? 0
               : ceil_div(item_entry_offsets[item + 1] - item_entry_offsets[item], kTileEntries);
  }
};

template <class Key>
void build(const LayerShape& shape, const ScheduleOptions& options, const SchedulePlan& plan,
           const DeviceRouting& routing, const DeviceSchedule& schedule, void* workspace,
           cudaStream_t stream) {
  auto* cursor = static_cast<std::byte*>(workspace);
  const auto take = [&cursor](std::int64_t bytes) {
    std::byte* const begin = cursor;
    cursor += bytes;
    return static_cast<void*>(begin);
  };
  auto* const keys_a = static_cast<Key*>(take(plan.key_bytes));
  auto* const keys_b = static_cast<Key*>(take(plan.key_bytes));
  auto* const other_values =
      plan.values_in_entries ? schedule.entry_tokens : static_cast<std::int32_t*>(take(plan.values_bytes));
  auto* const ranks = static_cast<std::int32_t*>(take(plan.ranks_bytes));
  void* const cub_storage = take(plan.cub_bytes);
  auto* const global_counters =
      plan.cover_global_bytes > 0 ? static_cast<std::int32_t*>(take(plan.cover_global_bytes)) : nullptr;

  const std::int64_t max_items = plan.capacity.max_items;
  const auto num_pairs = static_cast<std::int32_t>(plan.num_pairs);
  const auto num_experts = static_cast<std::int32_t>(plan.num_experts);
  const auto top_k = static_cast<std::int32_t>(shape.top_k);
  const auto no_staircase = static_cast<Key>(max_items);

  MOESCOPE_CUDA_CHECK(
      cudaMemsetAsync(ranks, 0, static_cast<std::size_t>(num_experts + std::int64_t{1}) * 4, stream));
  if (plan.staircase) {
    strip_cover_kernel<Key><<<plan.cover_blocks, kCoverThreads, plan.cover_shared_bytes, stream>>>(
        plan.cover, shape.num_tokens, routing.expert_ids, no_staircase, keys_a, ranks, global_counters);
  } else {
    flag_experts_kernel<<<num_blocks(num_pairs), kThreads, 0, stream>>>(num_pairs, routing.expert_ids, ranks);
  }
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  with_cub_storage("ranking the experts", cub_storage, plan.cub_bytes,
                   [&](void* storage, std::size_t& bytes) {
                     return cub::DeviceScan::ExclusiveSum(storage, bytes, ranks, ranks,
                                                          std::int64_t{num_experts} + 1, stream);
                   });

  // Two passes of 8 bits, the usual case, end in the buffer they began in.
  const int key_bits =
      std::max(1, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(max_items - 1))));
  const bool even_passes = (key_bits + 7) / 8 % 2 == 0;
  cub::DoubleBuffer<Key> keys(keys_a, keys_b);
  cub::DoubleBuffer<std::int32_t> values(even_passes ? schedule.sorted_pair_ids : other_values,
                                         even_passes ? other_values : schedule.sorted_pair_ids);
  const auto group_keys = plan.staircase ? group_keys_kernel<Key, false> : group_keys_kernel<Key, true>;
  group_keys<<<num_blocks(std::max(num_pairs, num_experts)), kThreads, 0, stream>>>(
      num_pairs, num_experts, plan.first_group, options.group_size, no_staircase, routing.expert_ids, ranks,
      keys.Current(), values.Current(), schedule.group_experts, schedule.counts);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  with_cub_storage("sorting the pairs", cub_storage, plan.cub_bytes, [&](void* storage, std::size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, keys, values, num_pairs, 0, key_bits, stream);
  });
  if (values.Current() != schedule.sorted_pair_ids) {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(schedule.sorted_pair_ids, values.Current(),
                                        static_cast<std::size_t>(num_pairs) * 4, cudaMemcpyDeviceToDevice,
                                        stream));
  }

  const EntryBegins<Key> begins{keys.Current(), schedule.sorted_pair_ids, top_k};
  with_cub_storage("finding the entries", cub_storage, plan.cub_bytes,
                   [&](void* storage, std::size_t& bytes) {
                     return cub::DeviceSelect::If(storage, bytes, thrust::counting_iterator<std::int32_t>(0),
                                                  schedule.entry_pair_offsets, schedule.counts + 1, num_pairs,
                                                  begins, stream);
                   });
  entries_kernel<Key>
      <<<num_blocks(std::max(plan.capacity.max_entries, max_items + 1)), kThreads, 0, stream>>>(
          num_pairs, top_k, max_items, keys.Current(), schedule.sorted_pair_ids, schedule.entry_pair_offsets,
          schedule.entry_tokens, schedule.item_entry_offsets, schedule.counts);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  with_cub_storage("counting the tiles", cub_storage, plan.cub_bytes, [&](void* storage, std::size_t& bytes) {
    const auto tiles = thrust::make_transform_iterator(thrust::counting_iterator<std::int64_t>(0),
                                                       TilesOfItem{schedule.item_entry_offsets, max_items});
    return cub::DeviceScan::ExclusiveSum(storage, bytes, tiles, schedule.item_tile_offsets, max_items + 1,
                                         stream);
  });
}

}  // namespace

void launch_schedule(const LayerShape& shape, const ScheduleOptions& options, DeviceRouting routing,
                     DeviceSchedule schedule, void* workspace, cudaStream_t stream) {
  const SchedulePlan plan = plan_schedule(shape, options);
  if (schedule.max_items < plan.capacity.max_items || schedule.max_entries < plan.capacity.max_entries) {
    throw InternalError("the device schedule's arrays are smaller than schedule_capacity() asks for");
  }
  const StageRange range(Stage::kSchedule);
  if (plan.wide_keys) {
    build<std::uint32_t>(shape, options, plan, routing, schedule, workspace, stream);
  } else {
    build<std::uint16_t>(shape, options, plan, routing, schedule, workspace, stream);
  }
}

}  // namespace moescope::cuda
