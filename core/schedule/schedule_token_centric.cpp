#include <cstdint>
#include <numeric>

#include "core/schedule/schedule.hpp"

namespace moescope {

Schedule build_token_centric(const Routing& routing, const ScheduleOptions& options) {
  Schedule schedule;
  schedule.kind = ScheduleKind::kTokenCentric;
  schedule.options = options;
  schedule.options.kind = schedule.kind;
  schedule.items.resize(static_cast<std::size_t>(routing.num_tokens));
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    schedule.items[token] = {.kind = WorkItemKind::kToken, .token_begin = token, .token_end = token + 1};
  }
  schedule.tokens.resize(static_cast<std::size_t>(routing.num_tokens));
  std::iota(schedule.tokens.begin(), schedule.tokens.end(), 0);
  schedule.pair_offsets = routing.token_offsets;
  schedule.sorted_pair_ids.resize(static_cast<std::size_t>(routing.num_pairs()));
  std::iota(schedule.sorted_pair_ids.begin(), schedule.sorted_pair_ids.end(), std::int64_t{0});
  return schedule;
}

}  // namespace moescope
