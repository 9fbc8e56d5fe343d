// Experts and token groups clustered together, by turns, as Speculative MoE (arXiv 2503.04398) poses it:
// tokens and experts in P clusters of equal size with as few pairs between clusters as can be.
#include <algorithm>
#include <numeric>

#include "core/base/index.hpp"
#include "core/ranks/exchange_plan.hpp"
#include "core/ranks/placement.hpp"

namespace moescope {
namespace {

/// Turns after which it is taken as it is; most cases stand still before.
constexpr int kMostTurns = 12;
/// Pairs that a rank may have above the mean, as long as another has room.
constexpr double kLoadSlack = 1.1;

/// Pairs by expert: the tokens of each.
struct TokensOfExperts {
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> tokens;
};

TokensOfExperts invert(const Routing& routing) {
  TokensOfExperts by;
  by.offsets.assign(at(routing.num_experts() + 1), 0);
  for (const std::int32_t expert : routing.expert_ids) {
    ++by.offsets[at(expert) + 1];
  }
  std::partial_sum(by.offsets.begin(), by.offsets.end(), by.offsets.begin());
  by.tokens.resize(at(routing.num_pairs()));
  std::vector<std::int64_t> next(by.offsets.begin(), by.offsets.end() - 1);
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    for (const std::int32_t expert : routing.ids_of(token)) {
      by.tokens[at(next[at(expert)]++)] = static_cast<std::int32_t>(token);
    }
  }
  return by;
}

/// Experts, the most used first, to the rank that has most of their tokens among those with room.
std::vector<std::int32_t> experts_to_tokens(const TokensOfExperts& by,
                                            std::span<const std::int32_t> token_rank,
                                            const RankGroup& group) {
  const std::int64_t experts = std::ssize(by.offsets) - 1;
  const std::int64_t room = (experts + group.ranks - 1) / group.ranks;
  const double most_pairs =
      kLoadSlack * static_cast<double>(by.tokens.size()) / static_cast<double>(group.ranks);
  std::vector<std::int32_t> order(at(experts));
  std::iota(order.begin(), order.end(), 0);
  const auto count = [&](std::int32_t expert) { return by.offsets[at(expert) + 1] - by.offsets[at(expert)]; };
  std::ranges::stable_sort(order, [&](std::int32_t a, std::int32_t b) { return count(a) > count(b); });
  std::vector<std::int32_t> rank_of(at(experts));
  std::vector<std::int64_t> held(at(group.ranks));
  std::vector<std::int64_t> pairs(at(group.ranks));
  std::vector<std::int64_t> affinity(at(group.ranks));
  for (const std::int32_t expert : order) {
    std::ranges::fill(affinity, 0);
    for (std::int64_t i = by.offsets[at(expert)]; i < by.offsets[at(expert) + 1]; ++i) {
      ++affinity[at(token_rank[at(by.tokens[at(i)])])];
    }
    std::int64_t best = -1;
    bool best_light = false;
    for (std::int64_t rank = 0; rank < group.ranks; ++rank) {
      if (held[at(rank)] >= room) {
        continue;
      }
      const bool light = static_cast<double>(pairs[at(rank)] + count(expert)) <= most_pairs;
      const bool better = best < 0 || (light != best_light ? light
                                       : light && affinity[at(rank)] != affinity[at(best)]
                                           ? affinity[at(rank)] > affinity[at(best)]
                                           : pairs[at(rank)] < pairs[at(best)]);
      if (better) {
        best = rank;
        best_light = light;
      }
    }
    rank_of[at(expert)] = static_cast<std::int32_t>(best);
    ++held[at(best)];
    pairs[at(best)] += count(expert);
  }
  return rank_of;
}

/// Pairs whose expert and token lie on one rank.
std::int64_t pairs_at_home(const Routing& routing, const CoClusters& clusters) {
  std::int64_t count = 0;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    for (const std::int32_t expert : routing.ids_of(token)) {
      count += clusters.expert_rank[at(expert)] == clusters.token_rank[at(token)] ? 1 : 0;
    }
  }
  return count;
}

}  // namespace

std::vector<std::int32_t> tokens_to_experts(const Routing& routing, std::span<const std::int32_t> expert_rank,
                                            const RankGroup& group) {
  const std::int64_t room = (routing.num_tokens + group.ranks - 1) / group.ranks;
  std::vector<std::int64_t> affinity(at(group.ranks));
  const auto count = [&](std::int64_t token) {
    std::ranges::fill(affinity, 0);
    for (const std::int32_t expert : routing.ids_of(token)) {
      ++affinity[at(expert_rank[at(expert)])];
    }
  };
  // Those that lose most by not getting their first choice come first.
  std::vector<std::int64_t> margin(at(routing.num_tokens));
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    count(token);
    std::int64_t first = 0;
    std::int64_t second = 0;
    for (const std::int64_t each : affinity) {
      second = std::max(second, std::min(first, each));
      first = std::max(first, each);
    }
    margin[at(token)] = group.ranks > 1 ? first - second : 0;
  }
  std::vector<std::int32_t> order(at(routing.num_tokens));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order,
                           [&](std::int32_t a, std::int32_t b) { return margin[at(a)] > margin[at(b)]; });
  std::vector<std::int32_t> rank_of(at(routing.num_tokens));
  std::vector<std::int64_t> held(at(group.ranks));
  for (const std::int32_t token : order) {
    count(token);
    std::int64_t best = -1;
    for (std::int64_t rank = 0; rank < group.ranks; ++rank) {
      if (held[at(rank)] < room && (best < 0 || affinity[at(rank)] > affinity[at(best)])) {
        best = rank;
      }
    }
    rank_of[at(token)] = static_cast<std::int32_t>(best);
    ++held[at(best)];
  }
  return rank_of;
}

CoClusters cluster_together(const Routing& routing, const RankGroup& group) {
  group.validate();
  const TokensOfExperts by = invert(routing);
  CoClusters now;
  now.token_rank = consecutive_homes(routing.num_tokens, group);
  CoClusters best;
  std::int64_t most = -1;
  for (int turn = 0; turn < kMostTurns; ++turn) {
    now.expert_rank = experts_to_tokens(by, now.token_rank, group);
    now.token_rank = tokens_to_experts(routing, now.expert_rank, group);
    const std::int64_t home = pairs_at_home(routing, now);
    if (home <= most) {
      break;
    }
    most = home;
    best = now;
  }
  return best;
}

}  // namespace moescope
