#include "profiler/placement/placement_study.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/index.hpp"

namespace moescope {
namespace {

/// Parts of the judged tokens that a verdict has to hold in.
constexpr std::int64_t kParts = 4;
/// Less than this is no gain: the next batch moves it by as much.
constexpr double kWorthwhile = 0.02;

PlacementUse use_on(const ExpertPlacement& placement, const Routing& routing) {
  const ExchangePlan plan =
      plan_exchange(Exchange::kDispatch, placement, routing, homes_of(placement, routing));
  return placement_use(plan, placement, routing);
}

JudgedPlacement judge(const PlacementSpec& spec, const RankGroup& group, const RoutedBatch& batch,
                      const Routing& seen, const Routing& judged) {
  JudgedPlacement result;
  result.spec = spec;
  try {
    result.placement = make_placement(spec, group, judged.grid_rows, judged.grid_cols, &seen);
  } catch (const InvalidArgument& error) {
    result.reason = error.what();
    return result;
  }
  result.placement.validate();
  ExchangePlan plan =
      plan_exchange(Exchange::kDispatch, result.placement, judged, homes_of(result.placement, judged));
  result.use = placement_use(plan, result.placement, judged);
  result.seen_max_over_mean =
      spec.by_counts() ? use_on(result.placement, seen).load_max_over_mean : result.use.load_max_over_mean;
  for (std::int64_t part = 0; part < kParts; ++part) {
    const std::int64_t begin = part * judged.num_tokens / kParts;
    const std::int64_t end = (part + 1) * judged.num_tokens / kParts;
    if (begin < end) {
      result.parts.push_back(use_on(result.placement, slice_tokens(judged, begin, end)).load_max_over_mean);
    }
  }
  if (batch.hidden_size > 0) {
    result.dispatch =
        link_bytes(plan, ExchangeSizes::of(Exchange::kDispatch, batch.hidden_size, batch.dtype));
    plan.exchange = Exchange::kGather;
    result.gather = link_bytes(plan, ExchangeSizes::of(Exchange::kGather, batch.hidden_size, batch.dtype));
  }
  return result;
}

bool whole_experts(const JudgedPlacement& each) {
  return each.reason.empty() && !each.placement.has_strips() && !each.spec.token_groups;
}

std::int64_t most_experts(const ExpertPlacement& placement) {
  return std::ranges::max(placement.experts_per_rank());
}

}  // namespace

Routing merge_heads(const Routing& routing, std::int64_t heads) {
  if (heads == 1) {
    return routing;
  }
  if (heads < 1 || routing.num_tokens % heads != 0) {
    throw InvalidArgument("heads", fmt::to_string(heads),
                          fmt::format("must divide {} rows of routing", routing.num_tokens));
  }
  Routing merged;
  merged.num_tokens = routing.num_tokens / heads;
  merged.grid_rows = routing.grid_rows;
  merged.grid_cols = routing.grid_cols;
  merged.token_offsets.push_back(0);
  for (std::int64_t token = 0; token < merged.num_tokens; ++token) {
    std::map<std::int32_t, float> gates;
    for (std::int64_t p = routing.token_offsets[at(token * heads)];
         p < routing.token_offsets[at((token + 1) * heads)]; ++p) {
      gates[routing.expert_ids[at(p)]] += routing.gates[at(p)];
    }
    for (const auto& [expert, gate] : gates) {
      merged.expert_ids.push_back(expert);
      merged.gates.push_back(gate);
    }
    merged.token_offsets.push_back(merged.num_pairs());
  }
  return merged;
}

Routing slice_tokens(const Routing& routing, std::int64_t begin, std::int64_t end) {
  Routing part;
  part.num_tokens = end - begin;
  part.grid_rows = routing.grid_rows;
  part.grid_cols = routing.grid_cols;
  const std::int64_t first = routing.token_offsets[at(begin)];
  const std::int64_t last = routing.token_offsets[at(end)];
  for (std::int64_t token = begin; token <= end; ++token) {
    part.token_offsets.push_back(routing.token_offsets[at(token)] - first);
  }
  part.expert_ids.assign(routing.expert_ids.begin() + first, routing.expert_ids.begin() + last);
  part.gates.assign(routing.gates.begin() + first, routing.gates.begin() + last);
  return part;
}

const JudgedPlacement* PlacementStudy::find(PlacementKind kind) const {
  const auto found = std::ranges::find_if(
      placements, [&](const JudgedPlacement& each) { return each.reason.empty() && each.spec.kind == kind; });
  return found == placements.end() ? nullptr : &*found;
}

PlacementStudy study_placements(RoutedBatch batch, const RankGroup& group,
                                std::span<const PlacementSpec> specs) {
  group.validate();
  const std::int64_t tokens = batch.routing.num_tokens;
  if (tokens < 2) {
    throw InvalidArgument("num_tokens", fmt::to_string(tokens),
                          "must be at least 2: one half is for placing, the other for judging");
  }
  PlacementStudy study;
  study.group = group;
  study.seen_tokens = tokens / 2;
  study.judged_tokens = tokens - study.seen_tokens;
  const Routing seen = slice_tokens(batch.routing, 0, study.seen_tokens);
  const Routing judged = slice_tokens(batch.routing, study.seen_tokens, tokens);
  for (const PlacementSpec& spec : specs) {
    study.placements.push_back(judge(spec, group, batch, seen, judged));
  }
  study.batch = std::move(batch);
  return study;
}

std::optional<CopiesAnswer> copies_answer(const PlacementStudy& study) {
  CopiesAnswer answer;
  for (const JudgedPlacement& each : study.placements) {
    if (!whole_experts(each)) {
      continue;
    }
    const JudgedPlacement*& best = each.spec.kind == PlacementKind::kEplb ? answer.with : answer.without;
    if (best == nullptr || each.use.load_max_over_mean < best->use.load_max_over_mean) {
      best = &each;
    }
  }
  if (answer.with == nullptr || answer.without == nullptr || study.group.ranks == 1) {
    return std::nullopt;
  }
  const double with = answer.with->use.load_max_over_mean;
  const double without = answer.without->use.load_max_over_mean;
  answer.saved = 1 - with / without;
  answer.ceiling = 1 - 1 / without;
  answer.memory = static_cast<double>(most_experts(answer.with->placement)) /
                      static_cast<double>(most_experts(answer.without->placement)) -
                  1;
  const bool everywhere =
      std::ranges::equal(answer.with->parts, answer.without->parts, [](double a, double b) { return a < b; });
  answer.verdict = answer.saved < kWorthwhile ? CopiesVerdict::kDoNotPay
                   : everywhere               ? CopiesVerdict::kPay
                                              : CopiesVerdict::kUndecided;
  return answer;
}

}  // namespace moescope
