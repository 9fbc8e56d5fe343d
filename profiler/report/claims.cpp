#include "profiler/report/claims.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "profiler/text/format.hpp"

namespace moescope {
namespace {

/// The paper's tokens and OmniMoE's smallest K of Table A; its grid, and the same experts without one.
constexpr std::int64_t kTokens = 4096;
constexpr std::int64_t kOmniMoeTopK = 512;
constexpr std::int64_t kSharedSize = 1024;
constexpr std::int64_t kGridSide = 320;
constexpr std::int64_t kNoGrid = 1;
/// Own choice: what rules call "as in the paper".
constexpr double kTolerance = 0.1;

enum class Rule : std::uint8_t { kAtLeast, kAbout };

ClaimVerdict ratio_verdict(Rule rule, double paper, double ours) {
  if (rule == Rule::kAtLeast) {
    return ours >= (1 - kTolerance) * paper ? ClaimVerdict::kHolds
           : ours > 1 + kTolerance          ? ClaimVerdict::kHoldsWithConditions
                                            : ClaimVerdict::kDoesNotHold;
  }
  return std::abs(ours / paper - 1) <= kTolerance ? ClaimVerdict::kHolds
         : (ours < 1) == (paper < 1)              ? ClaimVerdict::kHoldsWithConditions
                                                  : ClaimVerdict::kDoesNotHold;
}

/// A layer of the paper's comparison.
struct Wanted {
  std::string_view system = "omnimoe";
  std::int64_t top_k = kOmniMoeTopK;
  std::int64_t shared_size = kSharedSize;  ///< rows of version 1 do not say, and pass
  std::int64_t grid_rows = kGridSide;      ///< of omnimoe
  std::string_view device = {};            ///< empty: any
  std::string_view schedule = {};          ///< empty: the fastest
};

std::optional<double> layer_time_s(const RecordedSchedule& schedule) {
  return schedule.value(Stage::kLayer, "time_s");
}

/// Of several recordings of one revision the one with most schedules, so that a sweep of a few does not hide
/// a comparison of all; else the newest, and of equally old ones the last.
const RecordedLayer* newest(const RecordedLayer* a, const RecordedLayer* b) {
  if (a == nullptr) {
    return b;
  }
  if (a->header->git_revision == b->header->git_revision && a->schedules.size() != b->schedules.size()) {
    return a->schedules.size() > b->schedules.size() ? a : b;
  }
  return b->header->run_id >= a->header->run_id ? b : a;
}

template <class HasTime>
const RecordedLayer* find_layer(const std::vector<RecordedLayer>& layers, const Wanted& wanted,
                                const HasTime& has_time) {
  const RecordedLayer* found = nullptr;
  for (const RecordedLayer& layer : layers) {
    const ResultRow& what = layer.what;
    const bool grid =
        wanted.system != "omnimoe" ||
        (what.grid_rows == wanted.grid_rows && what.grid_rows * what.grid_cols == kGridSide * kGridSide);
    if (what.system == wanted.system && what.num_tokens == kTokens && what.hidden_size == 1024 &&
        what.top_k == wanted.top_k && what.dtype == "bf16" && what.workload == "gaussian:1" &&
        what.l2_state == "cold" && grid &&
        what.shared_size.value_or(wanted.shared_size) == wanted.shared_size &&
        (wanted.device.empty() || layer.header->device == wanted.device) &&
        std::ranges::any_of(layer.schedules, has_time)) {
      found = newest(found, &layer);
    }
  }
  return found;
}

const RecordedLayer* find_layer(const std::vector<RecordedLayer>& layers, const Wanted& wanted) {
  return find_layer(layers, wanted, [&](const RecordedSchedule& schedule) {
    return layer_time_s(schedule).has_value() &&
           (wanted.schedule.empty() || schedule.name == wanted.schedule);
  });
}

/// The schedule of that name whose layer was measured.
const RecordedSchedule* find_schedule(const RecordedLayer* layer, std::string_view name) {
  if (layer == nullptr) {
    return nullptr;
  }
  const auto found = std::ranges::find(layer->schedules, name, &RecordedSchedule::name);
  return found == layer->schedules.end() || !layer_time_s(*found) ? nullptr : &*found;
}

/// The schedule whose layer is fastest; `also_in`: of those that were measured there, too.
const RecordedSchedule* fastest(const RecordedLayer* layer, const RecordedLayer* also_in = nullptr) {
  const RecordedSchedule* best = nullptr;
  for (std::size_t s = 0; layer != nullptr && s < layer->schedules.size(); ++s) {
    const RecordedSchedule& schedule = layer->schedules[s];
    const auto time_s = layer_time_s(schedule);
    const bool allowed = also_in == nullptr || find_schedule(also_in, schedule.name) != nullptr;
    if (allowed && time_s && (best == nullptr || *time_s < *layer_time_s(*best))) {
      best = &schedule;
    }
  }
  return best;
}

std::string revision(const RecordedLayer& layer) {
  const RunHeader& header = *layer.header;
  if (const auto torch = header.libraries.find("torch"); torch != header.libraries.end()) {
    return "PyTorch " + torch->second;
  }
  return header.git_revision.substr(0, 7);
}

std::string revisions(std::initializer_list<const RecordedLayer*> layers) {
  std::set<std::string> names;
  for (const RecordedLayer* layer : layers) {
    names.insert(revision(*layer));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

ClaimResult no_rows(std::string claim, double paper, std::string missing) {
  ClaimResult result;
  result.claim = std::move(claim);
  result.paper = paper;
  result.why = std::move(missing);
  return result;
}

ClaimResult ratio_claim(std::string claim, Rule rule, double paper, double ours, std::string rows,
                        std::string why) {
  ClaimResult result = no_rows(std::move(claim), paper, std::move(why));
  result.ours = ours;
  result.verdict = ratio_verdict(rule, paper, ours);
  result.rows = std::move(rows);
  return result;
}

/// Latency of a layer over that of OmniMoE on the same device, each under its fastest schedule; a variant of
/// OmniMoE under the fastest of those that both were measured with, where there is one.
ClaimResult against_omnimoe(const std::vector<RecordedLayer>& layers, std::string claim, Rule rule,
                            double paper, const Wanted& other, const std::string& missing) {
  const RecordedLayer* layer = find_layer(layers, other);
  // A row of version 1 says no shared size, and would stand for any.
  const bool same = layer != nullptr && other.system == "omnimoe" && !layer->what.shared_size &&
                    other.shared_size != kSharedSize;
  const RecordedLayer* ours =
      layer == nullptr || same ? nullptr : find_layer(layers, {.device = layer->header->device});
  if (ours == nullptr) {
    return no_rows(std::move(claim), paper, missing);
  }
  const bool comparable = other.system == "omnimoe" && fastest(layer, ours) != nullptr;
  const RecordedSchedule& theirs = other.schedule.empty() ? *fastest(layer, comparable ? ours : nullptr)
                                                          : *find_schedule(layer, other.schedule);
  const RecordedSchedule& best = *fastest(ours, comparable ? layer : nullptr);
  const double above_s = *layer_time_s(theirs);
  const double below_s = *layer_time_s(best);
  return ratio_claim(std::move(claim), rule, paper, above_s / below_s, revisions({layer, ours}),
                     fmt::format("{} ({}) against {} ({}), {}", format_seconds(above_s), theirs.name,
                                 format_seconds(below_s), best.name, layer->header->device));
}

ClaimResult absolute_latency(const std::vector<RecordedLayer>& layers) {
  ClaimResult result =
      no_rows("time of an OmniMoE layer, 4096 tokens", 6.7e-3, "needs omnimoe at L 4096 K 512");
  result.unit = ClaimUnit::kSeconds;
  if (const RecordedLayer* layer = find_layer(layers, {})) {
    const RecordedSchedule& best = *fastest(layer);
    const RecordedSchedule* named = find_schedule(layer, "expert_centric");
    result.ours = layer_time_s(best);
    result.rows = revision(*layer);
    // Another device being faster says little of the claim.
    const bool same_device = layer->header->device.find("A100") != std::string::npos;
    result.verdict = *result.ours > *result.paper ? ClaimVerdict::kDoesNotHold
                     : same_device                ? ClaimVerdict::kHolds
                                                  : ClaimVerdict::kHoldsWithConditions;
    result.why = fmt::format("{}{}, {}; the paper's is of an A100", best.name,
                             named == nullptr
                                 ? std::string()
                                 : fmt::format(" (expert_centric {})", format_seconds(*layer_time_s(*named))),
                             layer->header->device);
  }
  return result;
}

/// Latency without expert-centric scheduling: token_centric over a schedule that groups work by expert.
ClaimResult without_grouping(const std::vector<RecordedLayer>& layers, std::string_view grouped,
                             std::string claim) {
  const RecordedLayer* layer = find_layer(layers, {});
  const RecordedSchedule* slow = find_schedule(layer, "token_centric");
  const RecordedSchedule* fast = find_schedule(layer, grouped);
  if (slow == nullptr || fast == nullptr) {
    return no_rows(std::move(claim), 24.8,
                   fmt::format("needs token_centric and {} of omnimoe at L 4096 K 512", grouped));
  }
  const double slow_s = *layer_time_s(*slow);
  const double fast_s = *layer_time_s(*fast);
  return ratio_claim(
      std::move(claim), Rule::kAtLeast, 24.8, slow_s / fast_s, revision(*layer),
      fmt::format(
          "token_centric {} against {} {}, {}; token_centric here is one fused kernel that gathers nothing "
          "into memory",
          format_seconds(slow_s), grouped, format_seconds(fast_s), layer->header->device));
}

/// The same against rows gathered by PyTorch, expert stages alone.
ClaimResult without_grouping_in_torch(const std::vector<RecordedLayer>& layers) {
  std::string claim = "the same, expert stage alone: PyTorch gathering rows / staircase:atomics";
  const auto gathers = [](const RecordedSchedule& schedule) {
    return schedule.name == "gather" && schedule.experts_time_s().has_value();
  };
  const RecordedLayer* torch = find_layer(layers, {}, gathers);
  const RecordedLayer* layer =
      torch == nullptr ? nullptr : find_layer(layers, {.device = torch->header->device});
  const RecordedSchedule* ours = find_schedule(layer, "staircase:atomics");
  if (ours == nullptr || !ours->experts_time_s()) {
    return no_rows(std::move(claim), 24.8, "needs torch_peers and staircase:atomics at L 4096 K 512");
  }
  const double slow_s = *std::ranges::find_if(torch->schedules, gathers)->experts_time_s();
  const double fast_s = *ours->experts_time_s();
  return ratio_claim(
      std::move(claim), Rule::kAtLeast, 24.8, slow_s / fast_s, revisions({torch, layer}),
      fmt::format("{} against {}, {}; against PyTorch's gather, not ours, most of the factor is there",
                  format_seconds(slow_s), format_seconds(fast_s), layer->header->device));
}

/// Latency without the Cartesian router, with PyTorch's top K over N scores for a selection that is made for
/// grids. Stages overlap: an estimate.
ClaimResult without_router_in_torch(const std::vector<RecordedLayer>& layers, const Wanted& full_router) {
  std::string claim = "the same, with PyTorch's top K over N scores";
  const auto selects = [](const RecordedSchedule& schedule) {
    return schedule.name == "topk_all_scores" && schedule.value(Stage::kRouterSelect, "time_s").has_value();
  };
  const RecordedLayer* torch = find_layer(layers, {}, selects);
  const RecordedLayer* layer = find_layer(layers, full_router);
  const RecordedLayer* ours =
      layer == nullptr ? nullptr : find_layer(layers, {.device = layer->header->device});
  const RecordedSchedule* flat = fastest(layer, ours);
  const RecordedSchedule* best = fastest(ours, layer);
  if (torch == nullptr || flat == nullptr || best == nullptr ||
      !flat->value(Stage::kRouterSelect, "time_s")) {
    return no_rows(std::move(claim), 30.6, "needs torch_peers and what the line above needs");
  }
  const double select_s = *flat->value(Stage::kRouterSelect, "time_s");
  const double torch_s =
      *std::ranges::find_if(torch->schedules, selects)->value(Stage::kRouterSelect, "time_s");
  const double flat_s = *layer_time_s(*flat) - select_s + torch_s;
  const double best_s = *layer_time_s(*best);
  return ratio_claim(
      std::move(claim), Rule::kAtLeast, 30.6, flat_s / best_s, revisions({torch, layer, ours}),
      fmt::format("of {} ({}) ours takes {}, which is made for grids, PyTorch's {}; against {} ({}), {}",
                  format_seconds(*layer_time_s(*flat)), flat->name, format_seconds(select_s),
                  format_seconds(torch_s), format_seconds(best_s), best->name, layer->header->device));
}

/// Memory without expert-centric scheduling, beside weights and tensors.
ClaimResult memory_without_grouping(const std::vector<RecordedLayer>& layers) {
  std::string claim = "memory without expert-centric scheduling";
  const RecordedLayer* layer = find_layer(layers, {});
  const RecordedSchedule* slow = find_schedule(layer, "token_centric");
  const RecordedSchedule* fast = find_schedule(layer, "expert_centric");
  const auto workspace = [](const RecordedSchedule* schedule) {
    return schedule == nullptr ? 0 : schedule->value(Stage::kLayer, "workspace_bytes").value_or(0);
  };
  const double slow_bytes = workspace(slow);
  const double fast_bytes = workspace(fast);
  if (slow_bytes <= 0 || fast_bytes <= 0) {
    return no_rows(std::move(claim), 417.7, "needs workspace_bytes of token_centric and expert_centric");
  }
  // Rows of W and V of every pair, bf16.
  const double gathered_bytes = 2.0 * 2 * 1024 * kTokens * kOmniMoeTopK;
  return ratio_claim(std::move(claim), Rule::kAtLeast, 417.7, slow_bytes / fast_bytes, revision(*layer),
                     fmt::format("beside weights and tensors: token_centric {} against expert_centric {}. "
                                 "The paper's keeps gathered "
                                 "rows, which would be {} more (analytic): {:.3g}x",
                                 format_bytes(slow_bytes), format_bytes(fast_bytes),
                                 format_bytes(gathered_bytes), (slow_bytes + gathered_bytes) / fast_bytes));
}

/// Peak memory of the fastest schedule; 0 when it is not recorded.
double peak_bytes(const RecordedLayer* layer) {
  return layer == nullptr ? 0 : fastest(layer)->value(Stage::kLayer, "peak_bytes").value_or(0);
}

ClaimResult memory_claim(std::string claim, Rule rule, double paper, const RecordedLayer* numerator,
                         const RecordedLayer* denominator, std::string missing) {
  const double above = peak_bytes(numerator);
  const double below = peak_bytes(denominator);
  if (above <= 0 || below <= 0) {
    return no_rows(std::move(claim), paper, std::move(missing));
  }
  return ratio_claim(
      std::move(claim), rule, paper, above / below, revisions({numerator, denominator}),
      fmt::format("{} against {}, weights included", format_bytes(above), format_bytes(below)));
}

/// Share of a stage in the layer, over every recorded Table A shape; ours is that of the paper's comparison
/// where it is recorded.
ClaimResult share_claim(const std::vector<RecordedLayer>& layers, Stage stage, std::string_view name,
                        std::string claim, double paper) {
  ClaimResult result =
      no_rows(std::move(claim), paper, fmt::format("needs {} at a Table A shape with L >= 1024", name));
  result.unit = ClaimUnit::kShare;
  std::map<std::tuple<std::int64_t, std::int64_t, std::string>, const RecordedLayer*> points;
  for (const RecordedLayer& layer : layers) {
    const ResultRow& what = layer.what;
    const RecordedSchedule* schedule = find_schedule(&layer, name);
    if (schedule != nullptr && schedule->value(stage, "time_s") && what.system == "omnimoe" &&
        what.hidden_size == 1024 && what.grid_rows == kGridSide && what.grid_cols == kGridSide &&
        what.num_tokens >= 1024) {
      const RecordedLayer*& point = points[{what.num_tokens, what.top_k, what.workload}];
      point = newest(point, &layer);
    }
  }
  std::ptrdiff_t within = 0;
  double worst = -1;
  std::set<std::string> of;
  for (const auto& [where, layer] : points) {
    const RecordedSchedule* schedule = find_schedule(layer, name);
    const double share = *schedule->value(stage, "time_s") / *layer_time_s(*schedule);
    within += share <= paper ? 1 : 0;
    of.insert(revision(*layer));
    if (share > worst) {
      worst = share;
      result.ours = result.ours.value_or(share);
      result.why = fmt::format("largest {} at L {} K {} {}", format_percent(share), std::get<0>(where),
                               std::get<1>(where), std::get<2>(where));
    }
    if (where == std::tuple(kTokens, kOmniMoeTopK, std::string("gaussian:1"))) {
      result.ours = share;
    }
  }
  if (!points.empty()) {
    result.verdict = within == std::ssize(points) ? ClaimVerdict::kHolds
                     : within > 0                 ? ClaimVerdict::kHoldsWithConditions
                                                  : ClaimVerdict::kDoesNotHold;
    result.rows = fmt::format("{}", fmt::join(of, ", "));
    result.why += fmt::format("; {} of {} layers with L >= 1024 are within", within, points.size());
  }
  return result;
}

/// What nobody may lose to unknowingly.
ClaimResult against_dense(const std::vector<RecordedLayer>& layers) {
  ClaimResult result;
  result.claim = "latency of all N experts densely / OmniMoE, 4096 tokens";
  result.why = "needs dense_masked at L 4096 K 512";
  const RecordedLayer* layer = find_layer(layers, {});
  if (const RecordedSchedule* dense = find_schedule(layer, "dense_masked")) {
    const RecordedSchedule& best = *fastest(layer);
    result.ours = *layer_time_s(*dense) / *layer_time_s(best);
    result.verdict = ClaimVerdict::kNotClaimed;
    result.rows = revision(*layer);
    result.why = fmt::format("dense_masked {} against {} {}, {}", format_seconds(*layer_time_s(*dense)),
                             best.name, format_seconds(*layer_time_s(best)), layer->header->device);
  }
  return result;
}

std::string figure_text(ClaimUnit unit, double value) {
  return unit == ClaimUnit::kShare     ? format_percent(value)
         : unit == ClaimUnit::kSeconds ? format_seconds(value)
                                       : fmt::format("{:.3g}x", value);
}

std::string ratio_text(double ratio) {
  return ratio < 0.01 ? fmt::format("{:.1g}", ratio) : fmt::format("{:.2f}", ratio);
}

/// What the stage itself takes, for want of a layer without it.
std::string shared_stage_text(const RecordedLayer* layer) {
  const RecordedSchedule* best = fastest(layer);
  const auto stage_s = best == nullptr ? std::nullopt : best->value(Stage::kSharedMlp, "time_s");
  return stage_s ? fmt::format("; the stage takes {} of {} ({})", format_seconds(*stage_s),
                               format_seconds(*layer_time_s(*best)), best->name)
                 : "";
}

}  // namespace

std::string_view to_string(ClaimVerdict verdict) {
  switch (verdict) {
    case ClaimVerdict::kHolds:
      return "holds";
    case ClaimVerdict::kHoldsWithConditions:
      return "holds with conditions";
    case ClaimVerdict::kDoesNotHold:
      return "does not hold here";
    case ClaimVerdict::kNoRows:
      return "no rows yet";
    case ClaimVerdict::kNotClaimed:
      return "not the paper's";
  }
  return "?";
}

std::vector<ClaimResult> judge_claims(const std::vector<RecordedLayer>& layers) {
  const Wanted full_router{.grid_rows = kNoGrid};
  const Wanted bare{.shared_size = 0};
  const Wanted deepseek{.system = "deepseekmoe", .top_k = 4};
  const RecordedLayer* ours = find_layer(layers, {});
  const RecordedLayer* without_shared = find_layer(layers, bare);
  if (without_shared != nullptr && without_shared->what.shared_size != 0) {
    without_shared = nullptr;  // it does not say
  }
  const std::string no_router =
      "needs omnimoe at L 4096 K 512 with grid 1x102400 (experiments/configs/ablations.json)";
  const std::string no_shared =
      "needs omnimoe at L 4096 K 512 with shared_size 0 (experiments/configs/ablations.json)";
  const std::string no_systems =
      "needs the baseline at L 4096 and its smallest K beside omnimoe (experiments/configs/table-a.json)";
  std::vector<ClaimResult> claims;
  const auto peer = [&](std::string claim, std::string_view schedule) {
    claims.push_back(against_omnimoe(
        layers, std::move(claim), Rule::kAtLeast, 10.9,
        {.system = "peer", .top_k = 1250, .shared_size = 0, .schedule = schedule}, no_systems));
  };
  peer("latency of PEER / OmniMoE, 4096 tokens", "token_centric");  // as published: it gathers
  peer("the same, PEER as products with all experts", "dense_masked");
  claims.push_back(against_omnimoe(layers, "latency of DeepSeekMoE / OmniMoE, 4096 tokens", Rule::kAtLeast,
                                   15.2, deepseek, no_systems));
  claims.push_back(absolute_latency(layers));
  claims.push_back(without_grouping(layers, "expert_centric", "latency without expert-centric scheduling"));
  claims.push_back(without_grouping(layers, "staircase:atomics", "the same, staircase for expert_centric"));
  claims.push_back(without_grouping_in_torch(layers));
  claims.push_back(memory_without_grouping(layers));
  claims.push_back(against_omnimoe(layers, "latency without the Cartesian router", Rule::kAtLeast, 30.6,
                                   full_router, no_router));
  if (claims.back().ours) {
    claims.back().why += "; most of it is our selection, which is made for grids: see the next line";
  }
  claims.push_back(without_router_in_torch(layers, full_router));
  claims.push_back(memory_claim("memory without the Cartesian router", Rule::kAtLeast, 337.5,
                                find_layer(layers, full_router), ours, no_router));
  claims.push_back(against_omnimoe(layers, "latency without the shared MLP", Rule::kAbout, 0.86, bare,
                                   no_shared + shared_stage_text(ours)));
  claims.push_back(
      memory_claim("memory without the shared MLP", Rule::kAbout, 0.98, without_shared, ours, no_shared));
  for (const char* schedule : {"expert_centric", "staircase"}) {
    claims.push_back(share_claim(layers, Stage::kSchedule, schedule,
                                 fmt::format("scheduling, share of the layer's time: {}", schedule), 0.05));
  }
  for (const char* schedule : {"expert_centric", "staircase"}) {
    claims.push_back(
        share_claim(layers, Stage::kRouterSelect, schedule,
                    fmt::format("selection is negligible, share of the layer's time: {}", schedule), 0.05));
  }
  claims.push_back(memory_claim("memory of OmniMoE / DeepSeekMoE (comparable)", Rule::kAbout, 1.0, ours,
                                find_layer(layers, deepseek), no_systems));
  claims.push_back(against_dense(layers));
  return claims;
}

std::string_view claim_rules() {
  return "Rules. A ratio of cost: holds when ours is at least 0.9 of the paper's; with conditions when it "
         "is\n"
         "smaller but above 1.1; else it does not hold here. A ratio about 1: holds within 10 %; with "
         "conditions\n"
         "on the same side of 1. A share (the paper names none for selection: 5 % as for scheduling): holds "
         "when\n"
         "every recorded layer keeps it; with conditions when some do; ours is that at L 4096 K 512 "
         "gaussian:1.\n"
         "A time: holds when ours is no longer; with conditions on another device than the paper's A100. "
         "Rows:\n"
         "revisions of moescope.\n";
}

Table claims_table(const std::vector<ClaimResult>& claims) {
  Table table({{"claim", Align::kLeft},
               {"paper"},
               {"ours"},
               {"ours / paper"},
               {"verdict", Align::kLeft},
               {"rows", Align::kLeft},
               {"why", Align::kLeft}});
  for (const ClaimResult& claim : claims) {
    const std::string paper =
        claim.paper ? (claim.unit == ClaimUnit::kShare ? "<= " : "") + figure_text(claim.unit, *claim.paper)
                    : "-";
    table.add_row({claim.claim, paper, claim.ours ? figure_text(claim.unit, *claim.ours) : "-",
                   claim.ours && claim.paper ? ratio_text(*claim.ours / *claim.paper) : "-",
                   std::string(to_string(claim.verdict)), claim.rows.empty() ? "-" : claim.rows, claim.why});
  }
  return table;
}

}  // namespace moescope
