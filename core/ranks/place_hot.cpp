#include <algorithm>
#include <numeric>

#include "core/ranks/placement.hpp"
#include "core/ranks/strip_pairs.hpp"

namespace moescope {

std::vector<std::int32_t> hottest_strips(const Routing& routing, std::int64_t count) {
  // What the first few take away from tokens changes what the next are worth; so they come in eight rounds.
  constexpr std::int64_t kRounds = 8;
  const auto num_rows = static_cast<std::size_t>(routing.grid_rows);
  const auto strips = num_rows + static_cast<std::size_t>(routing.grid_cols);
  std::vector<char> hot(strips);
  std::vector<std::int32_t> chosen;
  for (std::int64_t round = 1; round <= kRounds; ++round) {
    const std::int64_t until = round * count / kRounds;
    if (std::ssize(chosen) == until) {
      continue;
    }
    std::vector<std::int64_t> tokens(strips);
    StripPairs cover(routing);
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      cover.assign(token, hot);
      for (const std::int32_t strip : cover.strips()) {
        tokens[static_cast<std::size_t>(strip)] += hot[static_cast<std::size_t>(strip)] == 0 ? 1 : 0;
      }
    }
    std::vector<std::int32_t> order(strips);
    std::iota(order.begin(), order.end(), 0);
    std::erase_if(order, [&](std::int32_t strip) { return hot[static_cast<std::size_t>(strip)] != 0; });
    std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) {
      return tokens[static_cast<std::size_t>(a)] > tokens[static_cast<std::size_t>(b)];
    });
    for (std::size_t i = 0; std::ssize(chosen) < until; ++i) {
      chosen.push_back(order[i]);
      hot[static_cast<std::size_t>(order[i])] = 1;
    }
  }
  std::ranges::sort(chosen);
  return chosen;
}

}  // namespace moescope
