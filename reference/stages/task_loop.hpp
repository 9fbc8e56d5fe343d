#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/schedule/schedule.hpp"

namespace moescope::reference {

/// Calls body(thread, token, pair_ids) for every (item, token) of the schedule. Each thread owns a contiguous
/// range of tokens and walks *all* items in order for it: what is accumulated per token comes in the
/// schedule's order, whatever the number of threads, and an item's weights stay in cache over the range.
/// `threads` is what scratch was sized for.
template <class Body>
void for_each_task(const Schedule& schedule, std::int64_t num_tokens, int threads, const Body& body) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int part = 0; part < threads; ++part) {
    const auto first = static_cast<std::int32_t>(num_tokens * part / threads);
    const auto last = static_cast<std::int32_t>(num_tokens * (part + 1) / threads);
    for (const auto& item : schedule.items) {
      const auto begin = schedule.tokens.begin() + item.token_begin;
      const auto end = schedule.tokens.begin() + item.token_end;
      for (auto at = std::lower_bound(begin, end, first); at != end && *at < last; ++at) {
        const auto task = static_cast<std::size_t>(at - schedule.tokens.begin());
        const auto pairs = schedule.pair_offsets[task];
        body(part, *at,
             std::span(schedule.sorted_pair_ids)
                 .subspan(static_cast<std::size_t>(pairs),
                          static_cast<std::size_t>(schedule.pair_offsets[task + 1] - pairs)));
      }
    }
  }
}

/// The largest number of pairs that one task has.
inline std::int64_t max_task_pairs(const Schedule& schedule) {
  std::int64_t most = 0;
  for (std::size_t task = 0; task < schedule.tokens.size(); ++task) {
    most = std::max(most, schedule.pair_offsets[task + 1] - schedule.pair_offsets[task]);
  }
  return most;
}

}  // namespace moescope::reference
