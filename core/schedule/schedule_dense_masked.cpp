#include <cstdint>
#include <numeric>

#include "core/schedule/schedule.hpp"

namespace moescope {

Schedule build_dense_masked(const Routing& routing, const ScheduleOptions& options) {
  Schedule schedule;
  schedule.kind = ScheduleKind::kDenseMasked;
  schedule.options = options;
  schedule.options.kind = schedule.kind;
  schedule.items = {{.kind = WorkItemKind::kAllExperts, .token_begin = 0, .token_end = routing.num_tokens}};
  schedule.tokens.resize(static_cast<std::size_t>(routing.num_tokens));
  std::iota(schedule.tokens.begin(), schedule.tokens.end(), 0);
  schedule.pair_offsets = routing.token_offsets;
  schedule.sorted_pair_ids.resize(static_cast<std::size_t>(routing.num_pairs()));
  std::iota(schedule.sorted_pair_ids.begin(), schedule.sorted_pair_ids.end(), std::int64_t{0});
  return schedule;
}

}  // namespace moescope
