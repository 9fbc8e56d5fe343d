#include "core/auto_schedule.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/error.hpp"

namespace moescope {

namespace {

constexpr std::array kExpertStages = {Stage::kExpertScores, Stage::kExpertCombine, Stage::kExperts};

bool is_matrix_product(ScheduleKind kind, const MachineRates& rates) {
  if (kind == ScheduleKind::kDenseMasked) return true;
  return rates.items_are_matrices &&
         (kind == ScheduleKind::kExpertCentric || kind == ScheduleKind::kStaircase);
}

ScheduleCandidate predict(const AnalyticCost& cost, ScheduleKind kind, const MachineRates& rates) {
  const bool matrix = is_matrix_product(kind, rates);
  double compulsory_bytes = 0;
  double requested_bytes = 0;
  double flop = 0;
  for (const Stage stage : kExpertStages) {
    compulsory_bytes += static_cast<double>(cost.bytes(stage, MemoryLevel::kHbm));
    requested_bytes += static_cast<double>(cost.bytes(stage, MemoryLevel::kL2));
    flop += static_cast<double>(matrix ? cost.executed_flop(stage) : cost.useful_flop(stage));
  }
  ScheduleCandidate candidate{.kind = kind,
                              .memory_s = compulsory_bytes / rates.memory_bytes_per_s,
                              .cache_s = requested_bytes / rates.cache_bytes_per_s,
                              .flop_s = flop / (matrix ? rates.matrix_flop_per_s : rates.pair_flop_per_s),
                              .reason = {}};
  candidate.predicted_s = std::max({candidate.memory_s, candidate.cache_s, candidate.flop_s});
  const std::string_view bound = candidate.predicted_s == candidate.flop_s    ? "flop"
                                 : candidate.predicted_s == candidate.cache_s ? "requested bytes"
                                                                              : "compulsory bytes";
  candidate.reason = fmt::format(
      "{}: {:.3g} s, bound by {} (compulsory {:.3g} bytes {:.3g} s, requested {:.3g} bytes {:.3g} s, {} "
      "{:.3g} "
      "flop {:.3g} s)",
      to_string(kind), candidate.predicted_s, bound, compulsory_bytes, candidate.memory_s, requested_bytes,
      candidate.cache_s, matrix ? "matrix" : "pair", flop, candidate.flop_s);
  return candidate;
}

}  // namespace

void MachineRates::validate() const {
  const auto check = [](std::string_view field, double rate) {
    if (!(rate > 0) || !std::isfinite(rate)) {
      throw InvalidArgument(field, fmt::to_string(rate), "must be positive and finite");
    }
  };
  check("memory_bytes_per_s", memory_bytes_per_s);
  check("cache_bytes_per_s", cache_bytes_per_s);
  check("pair_flop_per_s", pair_flop_per_s);
  check("matrix_flop_per_s", matrix_flop_per_s);
  if (candidates.empty()) throw InvalidArgument("candidates", "(none)", "must name at least one schedule");
  if (std::find(candidates.begin(), candidates.end(), ScheduleKind::kAuto) != candidates.end()) {
    throw InvalidArgument("candidates", "auto", "must be schedules that can run");
  }
}

ScheduleChoice choose_schedule(const LayerShape& shape, const Routing& routing,
                               const ScheduleOptions& options, const MachineRates& rates) {
  rates.validate();
  ScheduleChoice choice;
  for (const ScheduleKind kind : rates.candidates) {
    ScheduleOptions of_kind = options;
    of_kind.kind = kind;
    choice.candidates.push_back(
        predict(analytic_cost(shape, routing, build_schedule(routing, of_kind)), kind, rates));
  }
  std::vector<ScheduleCandidate> ranked = choice.candidates;
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.predicted_s < b.predicted_s; });
  const ScheduleCandidate& best = ranked.front();
  choice.kind = best.kind;
  choice.reason = fmt::format("{}, predicted {:.3g} s", to_string(best.kind), best.predicted_s);
  if (ranked.size() > 1) {
    choice.reason += fmt::format("; next {} at {:.2f}x", to_string(ranked[1].kind),
                                 ranked[1].predicted_s / best.predicted_s);
  }
  choice.reason += fmt::format(" (rates: {})", rates.source);
  return choice;
}

}  // namespace moescope
