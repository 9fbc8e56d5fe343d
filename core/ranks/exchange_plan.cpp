#include "core/ranks/exchange_plan.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/index.hpp"
#include "core/ranks/strip_pairs.hpp"

namespace moescope {
namespace {

/// Pairs by the strips that cover their tokens.
void assign_strips(const ExpertPlacement& placement, const Routing& routing,
                   std::span<const std::int32_t> home, std::vector<std::int32_t>& rank_of) {
  const auto rows = placement.row_owner.size();
  std::vector<std::int32_t> owner = placement.row_owner;
  owner.insert(owner.end(), placement.col_owner.begin(), placement.col_owner.end());
  std::vector<char> hot(rows + placement.col_owner.size());
  std::ranges::transform(owner, hot.begin(), [](std::int32_t rank) { return rank == kEveryRank ? 1 : 0; });
  StripPairs cover(routing);
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    cover.assign(token, hot);
    std::int64_t pair = routing.token_offsets[at(token)];
    for (const std::int32_t strip : cover.strip_of_pair()) {
      const std::int32_t rank = owner[at(strip)];
      rank_of[at(pair++)] = rank == kEveryRank ? home[at(token)] : rank;
    }
  }
}

void require_homes(std::span<const std::int32_t> home, const Routing& routing, const RankGroup& group) {
  if (std::ssize(home) != routing.num_tokens) {
    throw InvalidArgument("home.size", fmt::to_string(home.size()),
                          fmt::format("must be {}, one for each token", routing.num_tokens));
  }
  for (std::size_t token = 0; token < home.size(); ++token) {
    if (home[token] < 0 || home[token] >= group.ranks) {
      throw InvalidArgument(fmt::format("home[{}]", token), fmt::to_string(home[token]),
                            fmt::format("must be a rank below {}", group.ranks));
    }
  }
}

void require_grid(const ExpertPlacement& placement, const Routing& routing) {
  if (placement.grid_rows != routing.grid_rows || placement.grid_cols != routing.grid_cols) {
    throw InvalidArgument("placement", placement.spec.text(),
                          fmt::format("is of a {} x {} grid, the routing is on {} x {}", placement.grid_rows,
                                      placement.grid_cols, routing.grid_rows, routing.grid_cols));
  }
}

}  // namespace

std::vector<std::int32_t> consecutive_homes(std::int64_t num_tokens, const RankGroup& group) {
  std::vector<std::int32_t> home(at(num_tokens));
  for (std::int64_t token = 0; token < num_tokens; ++token) {
    home[at(token)] = static_cast<std::int32_t>(group.owner_of(token, num_tokens));
  }
  return home;
}

std::vector<std::int32_t> homes_of(const ExpertPlacement& placement, const Routing& routing) {
  if (!placement.spec.token_groups) {
    return consecutive_homes(routing.num_tokens, placement.group);
  }
  require_grid(placement, routing);
  return tokens_to_experts(routing, placement.holders, placement.group);  // clustered: one holder each
}

std::vector<std::int32_t> assign_pairs(const ExpertPlacement& placement, const Routing& routing,
                                       std::span<const std::int32_t> home) {
  require_grid(placement, routing);
  require_homes(home, routing, placement.group);
  std::vector<std::int32_t> rank_of(at(routing.num_pairs()));
  if (placement.has_strips()) {
    assign_strips(placement, routing, home, rank_of);
    return rank_of;
  }
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    std::int64_t pair = routing.token_offsets[at(token)];
    for (const std::int32_t expert : routing.ids_of(token)) {
      const auto ranks = placement.holders_of(expert);
      const bool stays =
          ranks.front() == kEveryRank || std::ranges::find(ranks, home[at(token)]) != ranks.end();
      rank_of[at(pair++)] = stays ? home[at(token)] : ranks[at(token) % ranks.size()];
    }
  }
  return rank_of;
}

std::int64_t ExchangePlan::jobs(std::int64_t from, std::int64_t to) const {
  return job_offsets[at(link(from, to) + 1)] - job_offsets[at(link(from, to))];
}

std::int64_t ExchangePlan::pairs(std::int64_t from, std::int64_t to) const {
  return pair_offsets[at(job_offsets[at(link(from, to) + 1)])] -
         pair_offsets[at(job_offsets[at(link(from, to))])];
}

std::vector<std::int64_t> ExchangePlan::tokens_per_rank() const {
  std::vector<std::int64_t> tokens(at(group.ranks));
  for (const std::int32_t rank : home) {
    ++tokens[at(rank)];
  }
  return tokens;
}

std::vector<std::int64_t> ExchangePlan::pairs_per_rank() const {
  std::vector<std::int64_t> count(at(group.ranks));
  for (std::int64_t from = 0; from < group.ranks; ++from) {
    for (std::int64_t to = 0; to < group.ranks; ++to) {
      count[at(to)] += pairs(from, to);
    }
  }
  return count;
}

ExchangePlan plan_exchange(Exchange exchange, const ExpertPlacement& placement, const Routing& routing,
                           std::vector<std::int32_t> home) {
  const std::vector<std::int32_t> rank_of = assign_pairs(placement, routing, home);
  ExchangePlan plan;
  plan.exchange = exchange;
  plan.group = placement.group;
  plan.num_tokens = routing.num_tokens;
  plan.home = std::move(home);
  const std::int64_t ranks = plan.group.ranks;
  // Two passes over the tokens: how many jobs and pairs each link has, then where they go.
  std::vector<std::int64_t> pairs_here(at(ranks));
  std::vector<std::int32_t> touched;
  const auto for_each_job = [&](auto&& visit) {
    for (std::int64_t token = 0; token < plan.num_tokens; ++token) {
      const std::int64_t begin = routing.token_offsets[at(token)];
      const std::int64_t end = routing.token_offsets[at(token) + 1];
      touched.clear();
      for (std::int64_t pair = begin; pair < end; ++pair) {
        if (pairs_here[at(rank_of[at(pair)])]++ == 0) {
          touched.push_back(rank_of[at(pair)]);
        }
      }
      for (const std::int32_t rank : touched) {
        visit(token, plan.link(plan.home[at(token)], rank), pairs_here[at(rank)]);
        pairs_here[at(rank)] = 0;
      }
    }
  };
  plan.job_offsets.assign(at(ranks * ranks + 1), 0);
  for_each_job([&](std::int64_t, std::int64_t link, std::int64_t) { ++plan.job_offsets[at(link + 1)]; });
  std::partial_sum(plan.job_offsets.begin(), plan.job_offsets.end(), plan.job_offsets.begin());
  std::vector<std::int64_t> next(plan.job_offsets.begin(), plan.job_offsets.end() - 1);
  plan.job_tokens.resize(at(plan.job_offsets.back()));
  plan.pair_offsets.assign(plan.job_tokens.size() + 1, 0);
  for_each_job([&](std::int64_t token, std::int64_t link, std::int64_t count) {
    const std::int64_t job = next[at(link)]++;
    plan.job_tokens[at(job)] = static_cast<std::int32_t>(token);
    plan.pair_offsets[at(job + 1)] = count;
  });
  std::partial_sum(plan.pair_offsets.begin(), plan.pair_offsets.end(), plan.pair_offsets.begin());
  plan.pair_ids.resize(at(routing.num_pairs()));
  for (std::int64_t link = 0; link < ranks * ranks; ++link) {
    const auto rank = static_cast<std::int32_t>(link % ranks);
    for (std::int64_t job = plan.job_offsets[at(link)]; job < plan.job_offsets[at(link + 1)]; ++job) {
      std::int64_t place = plan.pair_offsets[at(job)];
      const std::int32_t token = plan.job_tokens[at(job)];
      for (std::int64_t p = routing.token_offsets[at(token)]; p < routing.token_offsets[at(token) + 1]; ++p) {
        if (rank_of[at(p)] == rank) {
          plan.pair_ids[at(place++)] = p;
        }
      }
    }
  }
  return plan;
}

void validate(const ExchangePlan& plan, const ExpertPlacement& placement, const Routing& routing) {
  const auto require = [](bool holds, std::string_view what, std::int64_t where) {
    if (!holds) {
      throw InternalError(fmt::format("exchange plan: {} at {}", what, where));
    }
  };
  const std::int64_t ranks = plan.group.ranks;
  require(plan.group == placement.group && plan.num_tokens == routing.num_tokens, "another batch or group",
          0);
  require(std::ssize(plan.home) == plan.num_tokens, "homes", std::ssize(plan.home));
  require(std::ssize(plan.job_offsets) == ranks * ranks + 1 && plan.job_offsets.front() == 0 &&
              plan.job_offsets.back() == plan.num_jobs(),
          "offsets of jobs", std::ssize(plan.job_offsets));
  require(std::ssize(plan.pair_offsets) == plan.num_jobs() + 1 && plan.pair_offsets.front() == 0 &&
              plan.pair_offsets.back() == std::ssize(plan.pair_ids) &&
              std::ssize(plan.pair_ids) == routing.num_pairs(),
          "offsets of pairs", std::ssize(plan.pair_offsets));
  std::vector<char> seen(at(routing.num_pairs()));
  for (std::int64_t link = 0; link < ranks * ranks; ++link) {
    require(plan.job_offsets[at(link)] <= plan.job_offsets[at(link + 1)], "offsets of jobs fall", link);
    for (std::int64_t job = plan.job_offsets[at(link)]; job < plan.job_offsets[at(link + 1)]; ++job) {
      const std::int32_t token = plan.job_tokens[at(job)];
      require(token >= 0 && token < plan.num_tokens, "a token out of range", job);
      require(job == plan.job_offsets[at(link)] || plan.job_tokens[at(job - 1)] < token,
              "tokens do not ascend", job);
      require(plan.home[at(token)] == link / ranks, "a token that is not at home", job);
      require(plan.pair_offsets[at(job)] < plan.pair_offsets[at(job + 1)], "a job without pairs", job);
      for (std::int64_t i = plan.pair_offsets[at(job)]; i < plan.pair_offsets[at(job + 1)]; ++i) {
        const std::int64_t pair = plan.pair_ids[at(i)];
        require(pair >= routing.token_offsets[at(token)] && pair < routing.token_offsets[at(token) + 1],
                "a pair of another token", i);
        require(seen[at(pair)]++ == 0, "a pair twice", pair);
        require(placement.holds(link % ranks, routing.expert_ids[at(pair)]), "a pair where its expert is not",
                pair);
      }
    }
  }
}

}  // namespace moescope
