#include "core/schedule/skew.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.hpp"
#include "core/schedule/strip_cover.hpp"

namespace moescope {
namespace {

// Fewer pairs than this (about 0.2 ms of work) are counted by one thread.
constexpr std::int64_t kParallelPairs = 4096;

/// The metrics that depend on the expert loads alone.
void add_load_metrics(const Routing& routing, SkewMetrics& skew) {
  auto loads = expert_loads(routing);
  std::sort(loads.begin(), loads.end());
  const auto num_experts = static_cast<double>(loads.size());
  const auto num_pairs = static_cast<double>(skew.num_pairs);
  double simpson = 0;
  double ranked = 0;  // sum of rank * load, ranks from 1 in ascending order of load
  for (std::size_t i = 0; i < loads.size(); ++i) {
    if (loads[i] == 0) {
      continue;
    }
    ++skew.active_experts;
    const auto load = static_cast<double>(loads[i]);
    const double share = load / num_pairs;
    skew.unevenness += share * std::log(share * num_experts);
    simpson += share * share;
    ranked += static_cast<double>(i + 1) * load;
  }
  skew.usage = static_cast<double>(skew.active_experts) / num_experts;
  skew.gini = 2 * ranked / (num_experts * num_pairs) - (num_experts + 1) / num_experts;
  skew.max_over_mean = static_cast<double>(loads.back()) * num_experts / num_pairs;
  skew.effective_experts = 1 / simpson;
  skew.reuse = num_pairs / static_cast<double>(skew.active_experts);
  // Rounding may leave an even routing a hair below zero.
  skew.unevenness = std::max(skew.unevenness, 0.0);
  skew.gini = std::max(skew.gini, 0.0);
}

/// The metrics of the grid: how many rows, columns and strips a token touches.
void add_grid_metrics(const Routing& routing, SkewMetrics& skew) {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t strips = 0;
  std::int64_t max_strips = 0;
  const bool large = routing.num_pairs() >= kParallelPairs;
  std::int64_t most_pairs = 0;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    most_pairs = std::max(most_pairs, static_cast<std::int64_t>(routing.ids_of(token).size()));
  }
#pragma omp parallel reduction(+ : rows, cols, strips) reduction(max : max_strips) if (large)
  {
    std::vector<std::int64_t> last_token(static_cast<std::size_t>(routing.grid_cols),
                                         -1);  // that used the column
    SmallestCover smallest(routing.grid_rows, routing.grid_cols, most_pairs);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      const auto ids = routing.ids_of(token);
      std::int64_t previous_row = -1;
      for (const auto id : ids) {
        const std::int64_t row = id / routing.grid_cols;
        rows += row != previous_row ? 1 : 0;
        previous_row = row;
        auto& column = last_token[static_cast<std::size_t>(id % routing.grid_cols)];
        cols += column != token ? 1 : 0;
        column = token;
      }
      const auto token_strips = smallest.size(ids);
      strips += token_strips;
      max_strips = std::max(max_strips, token_strips);
    }
  }
  const auto num_tokens = static_cast<double>(routing.num_tokens);
  skew.rows_per_token = static_cast<double>(rows) / num_tokens;
  skew.cols_per_token = static_cast<double>(cols) / num_tokens;
  skew.strips_per_token = static_cast<double>(strips) / num_tokens;
  skew.max_strips_per_token = max_strips;
}

}  // namespace

SkewMetrics compute_skew(const Routing& routing) {
  SkewMetrics skew;
  skew.num_pairs = routing.num_pairs();
  if (skew.num_pairs > 0) {
    add_load_metrics(routing, skew);
    add_grid_metrics(routing, skew);
  }
  return skew;
}

std::vector<std::int64_t> load_quantiles(const Routing& routing, std::span<const double> fractions) {
  auto loads = expert_loads(routing);
  std::sort(loads.begin(), loads.end());
  std::vector<std::int64_t> quantiles;
  quantiles.reserve(fractions.size());
  for (const double fraction : fractions) {
    if (!(fraction >= 0 && fraction <= 1)) {
      throw InvalidArgument("fraction", fmt::to_string(fraction), "must be in [0, 1]");
    }
    const auto rank = static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(loads.size())));
    quantiles.push_back(loads[std::clamp<std::size_t>(rank, 1, loads.size()) - 1]);
  }
  return quantiles;
}

}  // namespace moescope
