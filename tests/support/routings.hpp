#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"
#include "core/workload/philox.hpp"

/// Routings for tests: the one list of shapes and skews that every test of schedules and experts uses.
namespace moescope::test {

enum class RoutingSkew : std::uint8_t {
  kGaussian,     ///< grid logits N(0, 1) per token: staircases, mild skew
  kPopular,      ///< grid logits = Zipf popularity of rows and columns + noise: staircases, strong skew
  kTies,         ///< grid logits are small integers: staircases with many equal scores
  kUniform,      ///< K distinct experts, equally likely: no grid structure
  kSameExperts,  ///< every token uses the same K experts; with K = 1, all tokens on one expert
  kHotExpert,    ///< expert 0 has every token, the others are uniform
};

inline constexpr std::array kRoutingSkews = {RoutingSkew::kGaussian,    RoutingSkew::kPopular,
                                             RoutingSkew::kTies,        RoutingSkew::kUniform,
                                             RoutingSkew::kSameExperts, RoutingSkew::kHotExpert};

inline std::string to_string(RoutingSkew skew) {
  switch (skew) {
    case RoutingSkew::kGaussian:
      return "gaussian";
    case RoutingSkew::kPopular:
      return "popular";
    case RoutingSkew::kTies:
      return "ties";
    case RoutingSkew::kUniform:
      return "uniform";
    case RoutingSkew::kSameExperts:
      return "same_experts";
    case RoutingSkew::kHotExpert:
      return "hot_expert";
  }
  return "?";
}

/// True when every token's set is a staircase of the grid.
inline bool is_staircase_skew(RoutingSkew skew) {
  return skew == RoutingSkew::kGaussian || skew == RoutingSkew::kPopular || skew == RoutingSkew::kTies;
}

/// A shape with a skew; prints as L256_d128_N1024_K8_gaussian.
struct RoutingCase {
  LayerShape shape;
  RoutingSkew skew = RoutingSkew::kGaussian;

  std::string name() const { return shape.label() + "_" + to_string(skew); }
  friend std::ostream& operator<<(std::ostream& out, const RoutingCase& c) { return out << c.name(); }
};

inline LayerShape make_shape(std::int64_t num_tokens, std::int64_t hidden_size, std::int64_t grid_rows,
                             std::int64_t grid_cols, std::int64_t top_k, std::int64_t shared_size = 0) {
  LayerShape shape;
  shape.num_tokens = num_tokens;
  shape.hidden_size = hidden_size;
  shape.grid_rows = grid_rows;
  shape.grid_cols = grid_cols;
  shape.top_k = top_k;
  shape.shared_size = shared_size;
  return shape;
}

/// Small enough for any backend; always with L=1, K=1, K=N, non-square grids, one-row and one-column grids,
/// d=8, and sizes that no tile divides. With few tokens most experts have none.
inline std::vector<LayerShape> routing_shapes() {
  return {
      make_shape(1, 8, 4, 4, 1),         // one token, one expert
      make_shape(1, 32, 8, 8, 64),       // one token, K = N
      make_shape(3, 8, 48, 16, 7, 8),    // tall grid, few tokens
      make_shape(33, 24, 7, 11, 77, 5),  // K = N, odd sides
      make_shape(17, 96, 4, 32, 12),     // flat grid
      make_shape(50, 16, 1, 64, 9),      // one row
      make_shape(50, 16, 64, 1, 9, 24),  // one column
      make_shape(64, 40, 16, 16, 1),     // K = 1
      make_shape(130, 72, 24, 40, 33, 48), make_shape(256, 128, 32, 32, 8, 64),
  };
}

inline std::vector<RoutingCase> routing_cases() {
  std::vector<RoutingCase> cases;
  for (const LayerShape& shape : routing_shapes()) {
    for (const RoutingSkew skew : kRoutingSkews) cases.push_back({shape, skew});
  }
  return cases;
}

/// Standard normal number of an index (Box-Muller on two words of a Philox stream).
inline double normal(const Philox& random, std::uint64_t index) {
  const double radius = std::sqrt(-2.0 * std::log(random.uniform(2 * index)));
  return radius * std::cos(2.0 * std::numbers::pi * random.uniform(2 * index + 1));
}

/// The K largest row[i] + col[j] by sorting all of them, ties to the lower id; ids ascending.
inline std::vector<std::int32_t> brute_force_top_k(const std::vector<double>& row,
                                                   const std::vector<double>& col, std::int64_t top_k) {
  std::vector<std::pair<double, std::int32_t>> scores;
  scores.reserve(row.size() * col.size());
  for (const double r : row) {
    for (const double c : col) scores.emplace_back(-(r + c), static_cast<std::int32_t>(scores.size()));
  }
  std::partial_sort(scores.begin(), scores.begin() + top_k, scores.end());
  std::vector<std::int32_t> ids(static_cast<std::size_t>(top_k));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = scores[i].second;
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// `top_k` distinct ids of [first, num_experts), ascending (Floyd's sampling). `draw` numbers the sample.
inline std::vector<std::int32_t> random_ids(const Philox& random, std::uint64_t draw, std::int64_t first,
                                            std::int64_t num_experts, std::int64_t top_k) {
  std::vector<std::int32_t> ids;
  for (std::int64_t bound = num_experts - top_k; bound < num_experts; ++bound) {
    const auto index = draw * 0x100000U + static_cast<std::uint64_t>(bound);
    const auto span = static_cast<double>(bound - first + 1);
    const auto pick =
        static_cast<std::int32_t>(first + static_cast<std::int64_t>(random.uniform(index) * span));
    const auto at = std::lower_bound(ids.begin(), ids.end(), pick);
    if (at == ids.end() || *at != pick) {
      ids.insert(at, pick);
    } else {
      ids.push_back(static_cast<std::int32_t>(bound));  // larger than all before it
    }
  }
  return ids;
}

/// One token's logits of one side of the grid.
inline std::vector<double> random_side(const Philox& random, std::int64_t token, std::int64_t side,
                                       std::int64_t offset, RoutingSkew skew) {
  std::vector<double> logits(static_cast<std::size_t>(side));
  for (std::int64_t i = 0; i < side; ++i) {
    const double noise = normal(random, static_cast<std::uint64_t>((token << 22) + offset + i));
    switch (skew) {
      case RoutingSkew::kPopular:
        logits[i] = -1.5 * std::log(static_cast<double>(i + 1)) + 0.5 * noise;
        break;
      case RoutingSkew::kTies:
        logits[i] = std::round(noise);
        break;
      default:
        logits[i] = noise;
        break;
    }
  }
  return logits;
}

/// The experts of one token, ascending.
inline std::vector<std::int32_t> make_ids(const RoutingCase& c, const Philox& random, std::int64_t token) {
  const LayerShape& shape = c.shape;
  switch (c.skew) {
    case RoutingSkew::kUniform:
      return random_ids(random, static_cast<std::uint64_t>(token), 0, shape.num_experts(), shape.top_k);
    case RoutingSkew::kSameExperts:
      return random_ids(random, 0, 0, shape.num_experts(), shape.top_k);
    case RoutingSkew::kHotExpert: {
      auto ids =
          random_ids(random, static_cast<std::uint64_t>(token), 1, shape.num_experts(), shape.top_k - 1);
      ids.insert(ids.begin(), 0);
      return ids;
    }
    default:
      return brute_force_top_k(random_side(random, token, shape.grid_rows, 0, c.skew),
                               random_side(random, token, shape.grid_cols, 1 << 21, c.skew), shape.top_k);
  }
}

/// A routing of K distinct experts per token with positive gates that sum to 1 per token.
inline Routing make_routing(const RoutingCase& c, std::uint64_t seed) {
  const Philox ids_random(seed, 1);
  const Philox gates_random(seed, 2);
  Routing routing;
  routing.num_tokens = c.shape.num_tokens;
  routing.grid_rows = c.shape.grid_rows;
  routing.grid_cols = c.shape.grid_cols;
  routing.token_offsets.push_back(0);
  for (std::int64_t token = 0; token < c.shape.num_tokens; ++token) {
    const std::vector<std::int32_t> ids = make_ids(c, ids_random, token);
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    std::vector<double> weights(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      weights[i] = gates_random.uniform(static_cast<std::uint64_t>(routing.token_offsets.back()) + i);
    }
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (const double weight : weights) routing.gates.push_back(static_cast<float>(weight / sum));
    routing.token_offsets.push_back(routing.num_pairs());
  }
  return routing;
}

/// A routing written out by hand: the ids of each token, ascending; all gates of a token equal.
inline Routing routing_of(std::int64_t grid_rows, std::int64_t grid_cols,
                          const std::vector<std::vector<std::int32_t>>& ids_per_token) {
  Routing routing;
  routing.num_tokens = static_cast<std::int64_t>(ids_per_token.size());
  routing.grid_rows = grid_rows;
  routing.grid_cols = grid_cols;
  routing.token_offsets.push_back(0);
  for (const std::vector<std::int32_t>& ids : ids_per_token) {
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    routing.gates.insert(routing.gates.end(), ids.size(),
                         1.0F / static_cast<float>(std::max<std::size_t>(ids.size(), 1)));
    routing.token_offsets.push_back(routing.num_pairs());
  }
  return routing;
}

}  // namespace moescope::test
