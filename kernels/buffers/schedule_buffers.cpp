#include "kernels/buffers/schedule_buffers.hpp"

#include <algorithm>
#include <vector>

#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {

ScheduleBuffers::ScheduleBuffers(const LayerShape& shape, const ScheduleOptions& options)
    : shape_(shape),
      options_(options),
      capacity_(schedule_capacity(shape, options)),
      item_entry_offsets_(capacity_.max_items + 1),
      item_tile_offsets_(capacity_.max_items + 1),
      entry_tokens_(capacity_.max_entries),
      entry_pair_offsets_(capacity_.max_entries + 1),
      sorted_pair_ids_(shape.num_pairs()),
      group_experts_(capacity_.max_group_experts),
      counts_(4) {}

DeviceSchedule ScheduleBuffers::view() const {
  return {.max_items = capacity_.max_items,
          .max_entries = capacity_.max_entries,
          .item_entry_offsets = item_entry_offsets_.get(),
          .item_tile_offsets = item_tile_offsets_.get(),
          .entry_tokens = entry_tokens_.get(),
          .entry_pair_offsets = entry_pair_offsets_.get(),
          .sorted_pair_ids = sorted_pair_ids_.get(),
          .group_experts = group_experts_.get(),
          .counts = counts_.get()};
}

std::int64_t ScheduleBuffers::bytes() const {
  return item_entry_offsets_.bytes() + item_tile_offsets_.bytes() + entry_tokens_.bytes() +
         entry_pair_offsets_.bytes() + sorted_pair_ids_.bytes() + group_experts_.bytes() + counts_.bytes();
}

Schedule ScheduleBuffers::download(cudaStream_t stream) const {
  constexpr std::int64_t kRead = 3;  // items, entries, experts; the fourth belongs to the tile kernels
  const std::vector<std::int64_t> counts = copy_to_host(counts_.get(), kRead, stream);
  const std::int64_t num_items = counts[0];
  const std::int64_t num_entries = counts[1];
  const std::vector<std::int64_t> item_entries =
      copy_to_host(item_entry_offsets_.get(), num_items + 1, stream);
  const auto pair_offsets = copy_to_host(entry_pair_offsets_.get(), num_entries + 1, stream);
  const auto pair_ids = copy_to_host(sorted_pair_ids_.get(), sorted_pair_ids_.count(), stream);

  Schedule schedule;
  schedule.kind = options_.kind;
  schedule.options = options_;
  schedule.experts = copy_to_host(group_experts_.get(), counts[2], stream);
  schedule.tokens = copy_to_host(entry_tokens_.get(), num_entries, stream);
  schedule.pair_offsets.assign(pair_offsets.begin(), pair_offsets.end());
  schedule.sorted_pair_ids.assign(pair_ids.begin(), pair_ids.end());

  const bool strips = options_.kind == ScheduleKind::kStaircase;
  const std::int64_t first_col = strips ? shape_.grid_rows : 0;
  const std::int64_t first_group = strips ? shape_.grid_rows + shape_.grid_cols : 0;
  for (std::int64_t i = 0; i < num_items; ++i) {
    WorkItem item{.token_begin = item_entries[static_cast<std::size_t>(i)],
                  .token_end = item_entries[static_cast<std::size_t>(i) + 1]};
    if (item.token_begin == item.token_end) {
      continue;
    }
    if (i < first_group) {
      item.kind = i < first_col ? WorkItemKind::kRowStrip : WorkItemKind::kColStrip;
      item.strip = static_cast<std::int32_t>(i < first_col ? i : i - first_col);
    } else {
      item.kind = WorkItemKind::kGroup;
      item.expert_begin = (i - first_group) * options_.group_size;
      item.expert_end = std::min(item.expert_begin + options_.group_size, counts[2]);
    }
    schedule.items.push_back(item);
  }
  return schedule;
}

}  // namespace moescope::cuda
