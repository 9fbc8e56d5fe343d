#include "core/ranks/placement_use.hpp"

#include <algorithm>
#include <numeric>

#include "core/base/index.hpp"

namespace moescope {
namespace {

/// Whether all of the job's pairs are of experts that every rank has.
bool of_everywhere(const ExchangePlan& plan, const ExpertPlacement& placement, const Routing& routing,
                   std::int64_t job) {
  for (std::int64_t i = plan.pair_offsets[at(job)]; i < plan.pair_offsets[at(job + 1)]; ++i) {
    if (placement.holders_of(routing.expert_ids[at(plan.pair_ids[at(i)])]).front() != kEveryRank) {
      return false;
    }
  }
  return true;
}

}  // namespace

PlacementUse placement_use(const ExchangePlan& plan, const ExpertPlacement& placement,
                           const Routing& routing) {
  const std::int64_t ranks = plan.group.ranks;
  PlacementUse use;
  use.pairs = plan.pairs_per_rank();
  use.tokens.resize(at(ranks));
  std::int64_t touched = 0;
  std::int64_t remote = 0;
  std::vector<std::int64_t> nodes_seen(at(plan.num_tokens * plan.group.nodes));
  for (std::int64_t from = 0; from < ranks; ++from) {
    for (std::int64_t to = 0; to < ranks; ++to) {
      const std::int64_t link = plan.link(from, to);
      use.tokens[at(to)] += plan.jobs(from, to);
      for (std::int64_t job = plan.job_offsets[at(link)]; job < plan.job_offsets[at(link + 1)]; ++job) {
        touched += from != to || !of_everywhere(plan, placement, routing, job) ? 1 : 0;
        remote += from != to ? 1 : 0;
        const std::int64_t node = plan.group.node_of(to);
        if (node != plan.group.node_of(from)) {
          nodes_seen[at(plan.job_tokens[at(job)] * plan.group.nodes + node)] = 1;
        }
      }
    }
  }
  if (plan.num_tokens > 0) {
    const auto tokens = static_cast<double>(plan.num_tokens);
    use.ranks_per_token = static_cast<double>(touched) / tokens;
    use.remote_ranks_per_token = static_cast<double>(remote) / tokens;
    use.remote_nodes_per_token =
        static_cast<double>(std::accumulate(nodes_seen.begin(), nodes_seen.end(), std::int64_t{0})) / tokens;
    use.hottest_rank = std::ranges::max_element(use.tokens) - use.tokens.begin();
    use.hottest_share = static_cast<double>(use.tokens[at(use.hottest_rank)]) / tokens;
  }
  const auto sum = std::accumulate(use.pairs.begin(), use.pairs.end(), std::int64_t{0});
  if (sum > 0) {
    use.load_max_over_mean =
        static_cast<double>(std::ranges::max(use.pairs) * ranks) / static_cast<double>(sum);
  }
  use.idle_share = static_cast<double>(std::ranges::count(use.pairs, 0)) / static_cast<double>(ranks);
  return use;
}

}  // namespace moescope
