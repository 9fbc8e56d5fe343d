// Longest processing time first, and copies of what is used most: the arithmetic of DeepSeek's EPLB.
#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <queue>
#include <unordered_set>

#include "core/base/error.hpp"
#include "core/ranks/placement.hpp"

namespace moescope {
namespace {

/// Indices of `weights`, the heaviest first, ties by index.
std::vector<std::size_t> by_weight(std::span<const double> weights) {
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return weights[a] > weights[b]; });
  return order;
}

/// Items into packs of equal size (the last places of some stay empty where sizes do not divide), the
/// heaviest to the lightest pack with room that has none of its kind; where all have one, to the lightest.
/// Items of each pack in the order they came.
std::vector<std::vector<std::size_t>> pack_evenly(std::span<const double> weights,
                                                  std::span<const std::size_t> kinds,
                                                  std::int64_t num_packs) {
  const auto packs = static_cast<std::size_t>(num_packs);
  const std::size_t size = (weights.size() + packs - 1) / packs;
  // As many packs may be full as it takes; the others have one item less.
  std::size_t full_left = weights.empty() ? 0 : weights.size() - (size - 1) * packs;
  struct Pack {
    double weight;
    std::size_t index;
    bool operator>(const Pack& other) const {
      return weight != other.weight ? weight > other.weight : index > other.index;
    }
  };
  std::priority_queue<Pack, std::vector<Pack>, std::greater<>> lightest;
  for (std::size_t p = 0; p < packs; ++p) {
    lightest.push({0, p});
  }
  std::vector<std::vector<std::size_t>> items(packs);
  std::vector<std::unordered_set<std::size_t>> kinds_in(packs);
  std::vector<Pack> passed;
  for (const std::size_t item : by_weight(weights)) {
    const auto has_kind = [&](std::size_t pack) { return kinds_in[pack].contains(kinds[item]); };
    passed.clear();
    std::optional<Pack> chosen;
    while (!chosen && !lightest.empty()) {
      const Pack pack = lightest.top();
      lightest.pop();
      if (items[pack.index].size() + 1 == size && full_left == 0) {
        continue;  // one less than full is all it gets
      }
      if (has_kind(pack.index)) {
        passed.push_back(pack);
      } else {
        chosen = pack;
      }
    }
    if (!chosen) {
      chosen = passed.front();
      passed.erase(passed.begin());
    }
    for (const Pack& pack : passed) {
      lightest.push(pack);
    }
    std::vector<std::size_t>& mine = items[chosen->index];
    full_left -= mine.size() + 1 == size ? 1 : 0;
    mine.push_back(item);
    kinds_in[chosen->index].insert(kinds[item]);
    if (mine.size() < size) {
      lightest.push({chosen->weight + weights[item], chosen->index});
    }
  }
  return items;
}

/// Which of `counts` each of counts.size() + copies places holds: first each once, then again and again the
/// one with the most counts per place, of equal ones the first. No more places than `most` for one.
struct Copied {
  std::vector<std::size_t> of;       ///< [places]
  std::vector<std::int64_t> places;  ///< of each
};
Copied copy_heaviest(std::span<const double> counts, std::int64_t copies, std::int64_t most) {
  struct Share {
    double weight;
    std::size_t index;
    bool operator<(const Share& other) const {
      return weight != other.weight ? weight < other.weight : index > other.index;
    }
  };
  Copied copied{std::vector<std::size_t>(counts.size()), std::vector<std::int64_t>(counts.size(), 1)};
  std::iota(copied.of.begin(), copied.of.end(), std::size_t{0});
  std::priority_queue<Share> heaviest;
  for (std::size_t i = 0; i < counts.size() && most > 1; ++i) {
    heaviest.push({counts[i], i});
  }
  for (std::int64_t copy = 0; copy < copies && !heaviest.empty(); ++copy) {
    const std::size_t index = heaviest.top().index;
    heaviest.pop();
    copied.of.push_back(index);
    const std::int64_t places = ++copied.places[index];
    if (places < most) {
      heaviest.push({counts[index] / static_cast<double>(places), index});
    }
  }
  return copied;
}

}  // namespace

std::vector<std::vector<std::int32_t>> replicate_and_pack(std::span<const std::int64_t> counts,
                                                          std::int64_t copies, std::int64_t expert_groups,
                                                          const RankGroup& group) {
  group.validate();
  const auto experts = static_cast<std::int64_t>(counts.size());
  if (copies < 0 || copies > experts * (group.ranks - 1)) {
    throw InvalidArgument("copies", fmt::to_string(copies),
                          fmt::format("must be from 0 to {}: {} experts on {} ranks",
                                      experts * (group.ranks - 1), experts, group.ranks));
  }
  if (expert_groups < 1 || experts % expert_groups != 0) {
    throw InvalidArgument("expert_groups", fmt::to_string(expert_groups),
                          fmt::format("must divide {} experts", experts));
  }
  const bool by_node = expert_groups % group.nodes == 0 && expert_groups > 1;
  const std::int64_t nodes = by_node ? group.nodes : 1;
  const std::int64_t groups = by_node ? expert_groups : 1;
  if (copies % nodes != 0) {
    throw InvalidArgument("copies", fmt::to_string(copies),
                          fmt::format("must be as many for each of {} nodes", nodes));
  }
  const auto group_size = static_cast<std::size_t>(experts / groups);
  std::vector<double> of_group(static_cast<std::size_t>(groups));
  for (std::size_t e = 0; e < counts.size(); ++e) {
    of_group[e / group_size] += static_cast<double>(counts[e]);
  }
  std::vector<std::size_t> each_group(of_group.size());
  std::iota(each_group.begin(), each_group.end(), std::size_t{0});
  const auto groups_of_node = pack_evenly(of_group, each_group, nodes);
  const std::int64_t ranks_per_node = group.ranks / nodes;
  std::vector<std::vector<std::int32_t>> placed;
  for (const std::vector<std::size_t>& mine : groups_of_node) {
    std::vector<std::int32_t> expert;
    std::vector<double> weight;
    for (const std::size_t g : mine) {
      for (std::size_t e = g * group_size; e < (g + 1) * group_size; ++e) {
        expert.push_back(static_cast<std::int32_t>(e));
        weight.push_back(static_cast<double>(counts[e]));
      }
    }
    const Copied copied = copy_heaviest(weight, copies / nodes, ranks_per_node);
    std::vector<double> share;
    for (const std::size_t index : copied.of) {
      share.push_back(weight[index] / static_cast<double>(copied.places[index]));
    }
    for (const std::vector<std::size_t>& items : pack_evenly(share, copied.of, ranks_per_node)) {
      std::vector<std::int32_t>& rank = placed.emplace_back();
      for (const std::size_t item : items) {
        rank.push_back(expert[copied.of[item]]);
      }
    }
  }
  return placed;
}

}  // namespace moescope
