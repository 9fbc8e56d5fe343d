#include "profiler/claims/claims.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <tuple>

#include "profiler/claims/claim_evidence.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

using detail::Claim;
using detail::ClaimEvidence;
using detail::Rule;
using detail::Statement;

ClaimResult absolute_latency(const ClaimEvidence& evidence) {
  const RatioSide side;
  std::vector<Statement> statements;
  for (const auto& [recording, schedule] : recordings_with(evidence.recordings(), side)) {
    const RecordedSchedule* named = recording->find("expert_centric");
    const auto named_s = named == nullptr ? std::nullopt : layer_time_s(*named);
    statements.push_back({*layer_time_s(*schedule),
                          fmt::format("{} ({}{})", format_seconds(*layer_time_s(*schedule)), schedule->name,
                                      named_s ? "; expert_centric " + format_seconds(*named_s) : ""),
                          {recording},
                          has_fastest(evidence.recordings(), side, *recording)});
  }
  return evidence.settle(
      {"time of an OmniMoE layer, 4096 tokens", Rule::kTime, 6.7e-3, "needs omnimoe at L 4096 K 512"},
      statements, {side.layer});
}

/// Memory without expert-centric scheduling, beside weights and tensors.
ClaimResult memory_without_grouping(const ClaimEvidence& evidence) {
  const RatioSide slow{.quantity = workspace_bytes, .schedule = "token_centric"};
  const RatioSide fast{.quantity = workspace_bytes, .schedule = "expert_centric"};
  ClaimResult result = evidence.ratio({"memory without expert-centric scheduling", Rule::kAtLeast, 417.7,
                                       "needs workspace_bytes of token_centric and expert_centric"},
                                      slow, fast);
  // Rows of W and V of every pair, bf16.
  result.why += result.ours ? fmt::format(
                                  ". Beside weights and tensors; the paper's keeps gathered rows, "
                                  "which would be {} more (analytic)",
                                  format_bytes(2.0 * 2 * 1024 * 4096 * 512))
                            : "";
  return result;
}

/// Latency without the Cartesian router, with PyTorch's top K over N scores for a selection that is made for
/// grids. Stages overlap: an estimate.
ClaimResult without_router_in_torch(const ClaimEvidence& evidence, const WantedLayer& full_router) {
  const WantedLayer torch{.backend = "torch"};
  const WantedLayer ours{};
  const auto selects = recordings_with(
      evidence.recordings(), {.layer = torch, .quantity = select_time_s, .schedule = "topk_all_scores"});
  std::vector<Statement> statements;
  for (const RecordingPair& pair :
       recording_pairs(evidence.recordings(), {.layer = full_router}, {.layer = ours})) {
    const auto select_s = select_time_s(*pair.above.schedule);
    for (std::size_t t = 0; select_s && t < selects.size(); ++t) {
      const double flat_s = *layer_time_s(*pair.above.schedule);
      const double best_s = *layer_time_s(*pair.below.schedule);
      const double torch_s = *select_time_s(*selects[t].schedule);
      statements.push_back(
          {(flat_s - *select_s + torch_s) / best_s,
           fmt::format("of {} ({}) ours takes {}, which is made for grids, PyTorch's {}; against {} ({})",
                       format_seconds(flat_s), pair.above.schedule->name, format_seconds(*select_s),
                       format_seconds(torch_s), format_seconds(best_s), pair.below.schedule->name),
           {pair.above.recording, pair.below.recording, selects[t].recording},
           pair.complete});
    }
  }
  return evidence.settle({"the same, with PyTorch's top K over N scores", Rule::kAtLeast, 30.6,
                          "needs torch_peers and what the line above needs"},
                         statements, {full_router, ours, torch});
}

std::vector<ClaimResult> claims_of(const ClaimEvidence& evidence) {
  const WantedLayer ours{};
  const WantedLayer torch{.backend = "torch"};
  const WantedLayer full_router{.grid_rows = 1, .grid_cols = 320 * 320};
  const WantedLayer bare{.shared_size = 0};
  const WantedLayer peer{.system = "peer", .top_k = 1250, .shared_size = 0, .activation = "gelu"};
  const WantedLayer deepseek{
      .system = "deepseekmoe", .top_k = 4, .grid_rows = 1, .grid_cols = 256, .gates = "probability"};
  const std::string no_router =
      "needs omnimoe at L 4096 K 512 with grid 1x102400 (experiments/configs/ablations.json)";
  const std::string no_shared =
      "needs omnimoe at L 4096 K 512 with shared_size 0 (experiments/configs/ablations.json)";
  const std::string no_systems =
      "needs the baseline at L 4096 and its smallest K beside omnimoe (experiments/configs/table-a.json)";
  const auto no_schedules = [](std::string_view grouped) {
    return fmt::format("needs token_centric and {} of omnimoe at L 4096 K 512", grouped);
  };
  const auto of = [](const WantedLayer& layer, Quantity quantity = layer_time_s,
                     std::string_view schedule = {}) {
    return RatioSide{layer, quantity, schedule};
  };
  const auto under = [&](std::string_view schedule) { return of(ours, layer_time_s, schedule); };
  std::vector<ClaimResult> claims;
  const auto add = [&](ClaimResult result, std::string_view remark = {}) {
    result.why += result.ours ? remark : "";
    claims.push_back(std::move(result));
  };
  // PEER as published gathers.
  add(evidence.ratio({"latency of PEER / OmniMoE, 4096 tokens", Rule::kAtLeast, 10.9, no_systems},
                     of(peer, layer_time_s, "token_centric"), of(ours)));
  add(evidence.ratio({"the same, PEER as products with all experts", Rule::kAtLeast, 10.9, no_systems},
                     of(peer, layer_time_s, "dense_masked"), of(ours)));
  add(evidence.ratio({"latency of DeepSeekMoE / OmniMoE, 4096 tokens", Rule::kAtLeast, 15.2, no_systems},
                     of(deepseek), of(ours)));
  add(absolute_latency(evidence), ". The paper's is of an A100");
  constexpr std::string_view kFused =
      ". token_centric here is one fused kernel that gathers nothing into memory";
  add(evidence.ratio(
          {"latency without expert-centric scheduling", Rule::kAtLeast, 24.8, no_schedules("expert_centric")},
          under("token_centric"), under("expert_centric")),
      kFused);
  add(evidence.ratio(
          {"the same, staircase for expert_centric", Rule::kAtLeast, 24.8, no_schedules("staircase:atomics")},
          under("token_centric"), under("staircase:atomics")),
      kFused);
  add(evidence.ratio({"the same, expert stage alone: PyTorch gathering rows / staircase:atomics",
                      Rule::kAtLeast, 24.8, "needs torch_peers and staircase:atomics at L 4096 K 512"},
                     of(torch, expert_stages_time_s, "gather"),
                     of(ours, expert_stages_time_s, "staircase:atomics")),
      ". Against PyTorch's gather, not ours, most of the factor is there");
  add(memory_without_grouping(evidence));
  add(evidence.ratio({"latency without the Cartesian router", Rule::kAtLeast, 30.6, no_router},
                     of(full_router), of(ours)),
      ". Most of it is our selection, which is made for grids: see the next line");
  add(without_router_in_torch(evidence, full_router));
  add(evidence.ratio({"memory without the Cartesian router", Rule::kAtLeast, 337.5, no_router},
                     of(full_router, peak_bytes), of(ours, peak_bytes)),
      ". Weights included");
  add(evidence.ratio({"latency without the shared MLP", Rule::kAbout, 0.86, no_shared}, of(bare), of(ours)));
  add(evidence.ratio({"memory without the shared MLP", Rule::kAbout, 0.98, no_shared}, of(bare, peak_bytes),
                     of(ours, peak_bytes)),
      ". Weights included");
  for (const auto& [stage, what] : {std::pair(Stage::kSchedule, "scheduling"),
                                    std::pair(Stage::kRouterSelect, "selection is negligible")}) {
    for (const char* schedule : {"expert_centric", "staircase"}) {
      add(evidence.share({fmt::format("{}, share of the layer's time: {}", what, schedule), Rule::kShare,
                          0.05, fmt::format("needs {} at a Table A shape with L >= 1024", schedule)},
                         stage, schedule));
    }
  }
  add(evidence.ratio({"memory of OmniMoE / DeepSeekMoE (comparable)", Rule::kAbout, 1.0, no_systems},
                     of(ours, peak_bytes), of(deepseek, peak_bytes)),
      ". Weights included");
  // What nobody may lose to unknowingly.
  add(evidence.ratio({"latency of all N experts densely / OmniMoE, 4096 tokens",
                      Rule::kNone,
                      {},
                      "needs dense_masked at L 4096 K 512"},
                     under("dense_masked"), of(ours)));
  return claims;
}

}  // namespace

bool is_reached(ClaimVerdict verdict) {
  return verdict != ClaimVerdict::kNoRows && verdict != ClaimVerdict::kNotOnThisDevice;
}

int rank(ClaimVerdict verdict) {
  switch (verdict) {
    case ClaimVerdict::kHolds:
    case ClaimVerdict::kNotClaimed:
      return 0;
    case ClaimVerdict::kHoldsWithConditions:
      return 1;
    case ClaimVerdict::kDoesNotHold:
      return 2;
    default:
      return 3;
  }
}

std::vector<DeviceClaims> judge_claims(const std::vector<Recording>& recordings) {
  std::map<std::string, std::vector<const Recording*>> by_device;
  for (const Recording& recording : recordings) {
    by_device[recording.header->device].push_back(&recording);
  }
  if (by_device.empty()) {
    by_device[""];
  }
  std::vector<DeviceClaims> devices;
  for (const auto& [device, of] : by_device) {
    const RecordingNames names(of);
    DeviceClaims result{device, claims_of(ClaimEvidence(device, of, names)), {}};
    std::set<std::string> named;
    for (const ClaimResult& claim : result.claims) {
      named.insert(claim.used.begin(), claim.used.end());
      named.insert(claim.passed_over.begin(), claim.passed_over.end());
    }
    result.recordings = names.describe(named);
    devices.push_back(std::move(result));
  }
  for (std::size_t c = 0; c < devices.front().claims.size(); ++c) {
    const auto reached = [&](const DeviceClaims& device) { return is_reached(device.claims[c].verdict); };
    if (std::ranges::any_of(devices, reached)) {
      for (DeviceClaims& device : devices) {
        ClaimVerdict& verdict = device.claims[c].verdict;
        verdict = is_reached(verdict) ? verdict : ClaimVerdict::kNotOnThisDevice;
      }
    }
  }
  std::ranges::stable_sort(devices, std::greater{}, [](const DeviceClaims& device) {
    return std::ranges::count_if(device.claims, [](const auto& claim) { return is_reached(claim.verdict); });
  });
  return devices;
}

}  // namespace moescope
