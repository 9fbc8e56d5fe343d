#include "profiler/claims.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "profiler/format.hpp"

namespace moescope {
namespace {

/// The paper's tokens and, for each system, its smallest K of Table A there.
constexpr std::int64_t kTokens = 4096;
constexpr std::int64_t kOmniMoeTopK = 512;
/// Own choice: what rules call "as in the paper".
constexpr double kTolerance = 0.1;

enum class Rule : std::uint8_t { kAtLeast, kAtMost, kAbout };

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

/// Layers of the paper's comparison; `shared` null: any, which is what version 1 rows say.
const RecordedLayer* find_layer(const std::vector<RecordedLayer>& layers, std::string_view system,
                                std::int64_t top_k, std::int64_t shared, std::string_view device = {}) {
  const auto matches = [&](const RecordedLayer& layer) {
    const ResultRow& what = layer.what;
    return what.system == system && what.num_tokens == kTokens && what.hidden_size == 1024 &&
           what.top_k == top_k && what.dtype == "bf16" && what.workload == "gaussian:1" &&
           what.l2_state == "cold" && (system != "omnimoe" || what.grid_rows * what.grid_cols == 320 * 320) &&
           what.shared_size.value_or(shared) == shared &&
           (device.empty() || layer.header->device == device) &&
           std::ranges::any_of(layer.schedules, [](const RecordedSchedule& schedule) {
             return schedule.value(Stage::kLayer, "time_s").has_value();
           });
  };
  const auto found = std::find_if(layers.rbegin(), layers.rend(), matches);
  return found == layers.rend() ? nullptr : &*found;
}

const RecordedSchedule* find_schedule(const RecordedLayer& layer, std::string_view name) {
  const auto found = std::ranges::find(layer.schedules, name, &RecordedSchedule::name);
  return found == layer.schedules.end() ? nullptr : &*found;
}

/// The schedule whose layer is fastest among those that group work by expert, or among all.
const RecordedSchedule* fastest(const RecordedLayer& layer, bool grouped_only) {
  const RecordedSchedule* best = nullptr;
  for (const RecordedSchedule& schedule : layer.schedules) {
    const auto time = schedule.value(Stage::kLayer, "time_s");
    // "staircase:atomics" is one as well.
    const bool grouped = schedule.name == "expert_centric" || schedule.name.starts_with("staircase");
    if (time && (grouped || !grouped_only) &&
        (best == nullptr || *time < *best->value(Stage::kLayer, "time_s"))) {
      best = &schedule;
    }
  }
  return best;
}

/// Of the whole layer, where stages share what they do not need at once; 0 when it is not recorded.
double workspace_bytes(const RecordedSchedule& schedule) {
  return schedule.value(Stage::kLayer, "workspace_bytes").value_or(0);
}

ClaimResult no_rows(std::string claim, double paper, std::string missing) {
  ClaimResult result;
  result.claim = std::move(claim);
  result.paper = paper;
  result.why = std::move(missing);
  return result;
}

ClaimResult ratio_claim(std::string claim, Rule rule, double paper, double ours, std::string why) {
  ClaimResult result = no_rows(std::move(claim), paper, std::move(why));
  result.ours = ours;
  result.verdict = ratio_verdict(rule, paper, ours);
  return result;
}

const RecordedLayer* omnimoe(const std::vector<RecordedLayer>& layers, std::string_view device = {}) {
  return find_layer(layers, "omnimoe", kOmniMoeTopK, 1024, device);
}

/// Latency of a baseline over that of OmniMoE under its fastest schedule.
ClaimResult against_baseline(const std::vector<RecordedLayer>& layers, std::string_view system,
                             std::int64_t top_k, std::int64_t shared, double paper) {
  std::string claim = fmt::format("latency of {} / OmniMoE, 4096 tokens", system);
  const RecordedLayer* baseline = find_layer(layers, system, top_k, shared);
  const RecordedLayer* ours = baseline == nullptr ? nullptr : omnimoe(layers, baseline->header->device);
  if (baseline == nullptr || ours == nullptr) {
    return no_rows(std::move(claim), paper,
                   fmt::format("needs {} at L {} K {} and omnimoe at L {} K {} on one device", system,
                               kTokens, top_k, kTokens, kOmniMoeTopK));
  }
  const double slow_s = *fastest(*baseline, false)->value(Stage::kLayer, "time_s");
  const RecordedSchedule& best = *fastest(*ours, false);
  const double fast_s = *best.value(Stage::kLayer, "time_s");
  return ratio_claim(std::move(claim), Rule::kAtLeast, paper, slow_s / fast_s,
                     fmt::format("{} against {} ({}), {}", format_seconds(slow_s), format_seconds(fast_s),
                                 best.name, baseline->header->device));
}

/// Latency and memory without expert-centric scheduling: token_centric over the best that groups by expert.
std::array<ClaimResult, 2> without_grouping(const std::vector<RecordedLayer>& layers) {
  std::string latency = "latency without expert-centric scheduling";
  std::string memory = "memory without expert-centric scheduling";
  const RecordedLayer* layer = omnimoe(layers);
  const RecordedSchedule* slow = layer == nullptr ? nullptr : find_schedule(*layer, "token_centric");
  const RecordedSchedule* best = layer == nullptr ? nullptr : fastest(*layer, true);
  const double slow_s = slow == nullptr ? 0 : slow->value(Stage::kLayer, "time_s").value_or(0);
  const std::string missing = "needs token_centric and a grouped schedule of omnimoe at L 4096 K 512";
  if (best == nullptr || slow_s <= 0) {
    return {no_rows(std::move(latency), 24.8, missing), no_rows(std::move(memory), 417.7, missing)};
  }
  const double fast_s = *best->value(Stage::kLayer, "time_s");
  ClaimResult first = ratio_claim(
      std::move(latency), Rule::kAtLeast, 24.8, slow_s / fast_s,
      fmt::format("token_centric {} against {} {}, {}; ours gathers nothing into memory",
                  format_seconds(slow_s), best->name, format_seconds(fast_s), layer->header->device));
  const double slow_bytes = workspace_bytes(*slow);
  const double fast_bytes = workspace_bytes(*best);
  if (slow_bytes <= 0 || fast_bytes <= 0) {
    return {std::move(first), no_rows(std::move(memory), 417.7, "needs workspace_bytes of both layers")};
  }
  return {std::move(first),
          ratio_claim(std::move(memory), Rule::kAtLeast, 417.7, slow_bytes / fast_bytes,
                      fmt::format("beside weights and tensors: token_centric {} against {} {}",
                                  format_bytes(slow_bytes), best->name, format_bytes(fast_bytes)))};
}

/// Peak memory of the fastest schedule; 0 when it is not recorded.
double peak_bytes(const RecordedLayer* layer) {
  return layer == nullptr ? 0 : fastest(*layer, false)->value(Stage::kLayer, "peak_bytes").value_or(0);
}

ClaimResult memory_claim(std::string claim, double paper, const RecordedLayer* numerator,
                         const RecordedLayer* denominator) {
  const double above = peak_bytes(numerator);
  const double below = peak_bytes(denominator);
  if (above <= 0 || below <= 0) {
    return no_rows(std::move(claim), paper, "needs peak_bytes of both at L 4096, each at its smallest K");
  }
  return ratio_claim(std::move(claim), Rule::kAbout, paper, above / below,
                     fmt::format("{} against {}", format_bytes(above), format_bytes(below)));
}

ClaimResult without_shared(const std::vector<RecordedLayer>& layers) {
  std::string claim = "latency without the shared MLP";
  const RecordedLayer* without = find_layer(layers, "omnimoe", kOmniMoeTopK, 0);
  const RecordedLayer* with = nullptr;
  if (without != nullptr && without->what.shared_size == 0) {
    with = omnimoe(layers, without->header->device);
  }
  if (with == nullptr) {
    return no_rows(std::move(claim), 0.86, "needs omnimoe at L 4096 K 512 with shared_size 1024 and 0");
  }
  const double without_s = *fastest(*without, false)->value(Stage::kLayer, "time_s");
  const double with_s = *fastest(*with, false)->value(Stage::kLayer, "time_s");
  return ratio_claim(std::move(claim), Rule::kAbout, 0.86, without_s / with_s,
                     fmt::format("{} against {}, {}", format_seconds(without_s), format_seconds(with_s),
                                 with->header->device));
}

/// Share of a stage in the layer of expert_centric, over every recorded Table A shape.
ClaimResult share_claim(const std::vector<RecordedLayer>& layers, Stage stage, std::string claim,
                        double paper) {
  ClaimResult result = no_rows(std::move(claim), paper, "needs expert_centric at a Table A shape");
  result.is_share = true;
  int within = 0;
  int all = 0;
  double worst = 0;
  for (const RecordedLayer& layer : layers) {
    const RecordedSchedule* schedule = find_schedule(layer, "expert_centric");
    const bool table_a = layer.what.system == "omnimoe" && layer.what.hidden_size == 1024 &&
                         layer.what.grid_rows * layer.what.grid_cols == 320 * 320 &&
                         layer.what.num_tokens >= 1024;
    if (schedule == nullptr || !table_a) {
      continue;
    }
    const auto part_s = schedule->value(stage, "time_s");
    const auto layer_s = schedule->value(Stage::kLayer, "time_s");
    if (part_s && layer_s && *layer_s > 0) {
      ++all;
      within += *part_s <= paper * *layer_s ? 1 : 0;
      worst = std::max(worst, *part_s / *layer_s);
    }
  }
  if (all > 0) {
    result.ours = worst;
    result.verdict = within == all ? ClaimVerdict::kHolds
                     : within > 0  ? ClaimVerdict::kHoldsWithConditions
                                   : ClaimVerdict::kDoesNotHold;
    result.why = fmt::format("largest of {} layers with L >= 1024; {} within", all, within);
  }
  return result;
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
      return "no rows";
  }
  return "?";
}

std::vector<ClaimResult> judge_claims(const std::vector<RecordedLayer>& layers) {
  std::vector<ClaimResult> claims;
  claims.push_back(against_baseline(layers, "peer", 1250, 0, 10.9));
  claims.push_back(against_baseline(layers, "deepseekmoe", 4, 1024, 15.2));
  for (ClaimResult& claim : without_grouping(layers)) {
    claims.push_back(std::move(claim));
  }
  const char* full_router = "no layer with a full N-way projection and top-K is measured";
  claims.push_back(no_rows("latency without the Cartesian router", 30.6, full_router));
  claims.push_back(no_rows("memory without the Cartesian router", 337.5, full_router));
  claims.push_back(without_shared(layers));
  claims.push_back(memory_claim("memory without the shared MLP", 0.98,
                                find_layer(layers, "omnimoe", kOmniMoeTopK, 0), omnimoe(layers)));
  claims.push_back(share_claim(layers, Stage::kSchedule, "scheduling, share of the layer's time", 0.05));
  claims.push_back(
      share_claim(layers, Stage::kRouterSelect, "selection is negligible, share of the layer's time", 0.05));
  claims.push_back(memory_claim("memory of OmniMoE / DeepSeekMoE (comparable)", 1.0, omnimoe(layers),
                                find_layer(layers, "deepseekmoe", 4, 1024)));
  return claims;
}

std::string_view claim_rules() {
  return "Rules. A ratio of cost: holds when ours is at least 0.9 of the paper's; with conditions when it is "
         "smaller "
         "but above\n1.1; else it does not hold here. A ratio about 1: holds within 10 %; with conditions on "
         "the same "
         "side of 1. A share\n(the paper names none for selection: 5 % as for scheduling): holds when every "
         "recorded "
         "layer keeps it; with conditions\nwhen some do. The paper measured on an A100.\n";
}

Table claims_table(const std::vector<ClaimResult>& claims) {
  Table table({{"claim", Align::kLeft},
               {"paper"},
               {"ours"},
               {"ours / paper"},
               {"verdict", Align::kLeft},
               {"why", Align::kLeft}});
  for (const ClaimResult& claim : claims) {
    const auto text = [&](double value) {
      return claim.is_share ? format_percent(value) : fmt::format("{:.3g}x", value);
    };
    table.add_row({claim.claim, (claim.is_share ? "<= " : "") + text(claim.paper),
                   claim.ours ? text(*claim.ours) : "-",
                   claim.ours ? fmt::format("{:.2f}", *claim.ours / claim.paper) : "-",
                   std::string(to_string(claim.verdict)), claim.why});
  }
  return table;
}

}  // namespace moescope
