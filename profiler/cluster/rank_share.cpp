#include "profiler/cluster/rank_share.hpp"

#include <algorithm>

#include "core/base/index.hpp"

namespace moescope {
namespace {

Routing empty_like(const Routing& routing) {
  Routing part;
  part.grid_rows = routing.grid_rows;
  part.grid_cols = routing.grid_cols;
  part.token_offsets.push_back(0);
  return part;
}

void add_pair(Routing& part, const Routing& routing, std::int64_t pair) {
  part.expert_ids.push_back(routing.expert_ids[at(pair)]);
  part.gates.push_back(routing.gates[at(pair)]);
}

void end_token(Routing& part) {
  part.token_offsets.push_back(part.num_pairs());
  ++part.num_tokens;
}

}  // namespace

Routing take_tokens(const Routing& routing, std::span<const std::int32_t> tokens) {
  Routing part = empty_like(routing);
  for (const std::int32_t token : tokens) {
    for (std::int64_t p = routing.token_offsets[at(token)]; p < routing.token_offsets[at(token) + 1]; ++p) {
      add_pair(part, routing, p);
    }
    end_token(part);
  }
  return part;
}

Routing rank_routing(const ExchangePlan& plan, const Routing& routing, std::int64_t rank) {
  Routing part = empty_like(routing);
  std::vector<std::vector<std::int32_t>> homes;
  if (plan.exchange == Exchange::kGather) {
    homes = home_tokens(plan.home, plan.group.ranks);
  }
  for (std::int64_t home = 0; home < plan.group.ranks; ++home) {
    const std::int64_t link = plan.link(home, rank);
    std::int64_t job = plan.job_offsets[at(link)];
    const std::int64_t end = plan.job_offsets[at(link + 1)];
    const auto add_job = [&] {
      for (std::int64_t i = plan.pair_offsets[at(job)]; i < plan.pair_offsets[at(job + 1)]; ++i) {
        add_pair(part, routing, plan.pair_ids[at(i)]);
      }
      ++job;
    };
    if (plan.exchange == Exchange::kDispatch) {
      while (job < end) {
        add_job();
        end_token(part);
      }
      continue;
    }
    for (const std::int32_t token : homes[at(home)]) {
      if (job < end && plan.job_tokens[at(job)] == token) {
        add_job();
      }
      end_token(part);
    }
  }
  return part;
}

std::vector<std::vector<std::int32_t>> home_tokens(std::span<const std::int32_t> home, std::int64_t ranks) {
  std::vector<std::vector<std::int32_t>> tokens(at(ranks));
  for (std::size_t token = 0; token < home.size(); ++token) {
    tokens[at(home[token])].push_back(static_cast<std::int32_t>(token));
  }
  return tokens;
}

Routing chunk_routing(const Routing& routing, std::span<const std::int32_t> home, const RankGroup& group,
                      std::int64_t chunk, std::int64_t chunks, std::vector<std::int32_t>& chunk_home) {
  std::vector<std::int32_t> chosen;
  for (const std::vector<std::int32_t>& own : home_tokens(home, group.ranks)) {
    const RankGroup parts{chunks, 1};
    const auto count = static_cast<std::int64_t>(own.size());
    chosen.insert(chosen.end(), own.begin() + parts.first_of(chunk, count),
                  own.begin() + parts.first_of(chunk + 1, count));
  }
  std::ranges::sort(chosen);
  chunk_home.clear();
  for (const std::int32_t token : chosen) {
    chunk_home.push_back(home[at(token)]);
  }
  return take_tokens(routing, chosen);
}

}  // namespace moescope
