#include "core/cost/auto_schedule.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <string_view>

#include "core/base/error.hpp"
#include "core/tiling/strip_tiles.hpp"
#include "core/tiling/tile_config.hpp"
#include "core/tiling/token_split.hpp"

namespace moescope {

void MachineRates::validate() const {
  const auto check = [](std::string_view field, double number, bool or_zero) {
    if (!std::isfinite(number) || number < 0 || (number == 0 && !or_zero)) {
      throw InvalidArgument(field, fmt::to_string(number),
                            or_zero ? "must be finite and not negative" : "must be positive and finite");
    }
  };
  check("cache_bytes", size.cache_bytes, false);
  if (candidates.empty()) throw InvalidArgument("candidates", "(none)", "must name at least one schedule");
  for (const ScheduleRates& rates : candidates) {
    if (rates.schedule.kind == ScheduleKind::kAuto) {
      throw InvalidArgument("candidates", "auto", "must be schedules that can run");
    }
    const auto field = [&](std::string_view name) {
      return fmt::format("{}.{}", to_string(rates.schedule), name);
    };
    check(field("fixed_s"), rates.fixed_s, true);
    check(field("memory_bytes_per_s"), rates.memory_bytes_per_s, false);
    check(field("cache_bytes_per_s"), rates.cache_bytes_per_s, false);
    check(field("flop_per_s"), rates.flop_per_s, false);
  }
}

std::string ScheduleChoice::explanation() const {
  std::string text = reason;
  for (const ScheduleCandidate& candidate : candidates) {
    text += "\n  " + candidate.reason;
  }
  return text;
}

ScheduleOptions candidate_options(const ScheduleOptions& asked, const ScheduleRates& candidate) {
  ScheduleOptions options = asked;
  options.kind = candidate.schedule.kind;
  options.strip_rule = candidate.schedule.strip_rule;
  return options;
}

namespace {

/// What follows one on the other, on a GPU: a kernel cannot be shorter, however little there is to do in all.
void add_chains(ScheduleWork& work, const LayerShape& shape, const AnalyticCost& cost, ScheduleKind kind,
                const MachineSize& machine) {
  if (machine.num_sms == 0) {
    return;
  }
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(shape.dtype);
  if (kind == ScheduleKind::kTokenCentric && row_bytes <= TokenSplit::max_row_bytes()) {
    GpuTraits gpu;
    gpu.num_sms = machine.num_sms;
    const TokenSplit split = TokenSplit::choose(gpu, shape.num_tokens, shape.top_k, row_bytes,
                                                TokenSplit::kMaxClusterBlocks, TokenSplit::kMaxClusters);
    constexpr std::int64_t kBlocksPerSm = 2;
    work.pairs = static_cast<double>(shape.num_pairs());
    work.steps = static_cast<double>(ceil_div(shape.top_k, split.splits()) *
                                     ceil_div(split.num_blocks, kBlocksPerSm * machine.num_sms));
  } else if (kind == ScheduleKind::kStaircase) {
    const std::int64_t waves = ceil_div(cost.strip_units, machine.num_sms);
    const std::int64_t segment = strip_segment_experts(shape.grid_rows, shape.grid_cols);
    work.steps = static_cast<double>(waves);
    work.chain_bytes = static_cast<double>(2 * waves * segment * row_bytes);
  }
}

}  // namespace

ScheduleWork schedule_work(const LayerShape& shape, const SkewMetrics& skew, const AnalyticCost& cost,
                           const ScheduleRates& rates, const MachineSize& machine) {
  double compulsory_bytes = 0;
  double requested_bytes = 0;
  double flop = 0;
  for (const Stage stage : kExpertStages) {
    compulsory_bytes += static_cast<double>(cost.bytes(stage, MemoryLevel::kHbm));
    requested_bytes += static_cast<double>(cost.bytes(stage, MemoryLevel::kL2));
    flop += static_cast<double>(rates.executes_masked ? cost.executed_flop(stage) : cost.useful_flop(stage));
  }
  double missed = 0;
  if (!rates.reuse_is_near) {
    const double rows_bytes =
        2 * skew.effective_experts * static_cast<double>(shape.hidden_size * dtype_bytes(shape.dtype));
    missed = std::max(0.0, 1 - machine.cache_bytes / rows_bytes);
  }
  ScheduleWork work{
      .memory_bytes = compulsory_bytes + missed * std::max(0.0, requested_bytes - compulsory_bytes),
      .requested_bytes = requested_bytes,
      .flop = flop};
  add_chains(work, shape, cost, rates.schedule.kind, machine);
  return work;
}

ScheduleCandidate predict_schedule(const LayerShape& shape, const SkewMetrics& skew, const AnalyticCost& cost,
                                   const ScheduleRates& rates, const MachineSize& machine,
                                   const SelectionRates* selection) {
  const ScheduleWork work = schedule_work(shape, skew, cost, rates, machine);
  const double chain_bytes_s = rates.chain_bytes_per_s > 0 ? work.chain_bytes / rates.chain_bytes_per_s : 0;
  ScheduleCandidate candidate{
      .schedule = rates.schedule,
      .fixed_s = rates.fixed_s,
      .memory_s = work.memory_bytes / rates.memory_bytes_per_s,
      .cache_s = work.requested_bytes / rates.cache_bytes_per_s,
      .flop_s = work.flop / rates.flop_per_s,
      .chain_s = std::max(work.pairs * rates.pair_s, work.steps * rates.step_s + chain_bytes_s),
      .select_s = 0,
      .predicted_s = work.predicted_s(rates),
      .reason = {}};
  if (selection != nullptr) {
    candidate.select_s =
        selection->predicted_s(shape, rates.schedule.kind == ScheduleKind::kStaircase, machine.num_sms);
    candidate.predicted_s += candidate.select_s;
  }
  const double largest_s =
      std::max({candidate.memory_s, candidate.cache_s, candidate.flop_s, candidate.chain_s});
  const std::string_view bound = candidate.fixed_s > largest_s    ? "what does not grow with the batch"
                                 : largest_s == candidate.chain_s ? "what follows one on the other"
                                 : largest_s == candidate.flop_s  ? "flop"
                                 : largest_s == candidate.cache_s ? "requested bytes"
                                                                  : "bytes from memory";
  candidate.reason = fmt::format(
      "{}: {:.3g} s, bound by {} (fixed {:.3g} s, memory {:.3g} bytes {:.3g} s, requested {:.3g} bytes "
      "{:.3g} s, {} "
      "{:.3g} flop {:.3g} s)",
      to_string(rates.schedule), candidate.predicted_s, bound, candidate.fixed_s, work.memory_bytes,
      candidate.memory_s, work.requested_bytes, candidate.cache_s,
      rates.executes_masked ? "executed" : "useful", work.flop, candidate.flop_s);
  if (candidate.chain_s > 0) {
    candidate.reason.insert(candidate.reason.size() - 1, fmt::format(", chains {:.3g} s", candidate.chain_s));
  }
  if (selection != nullptr) {
    candidate.reason.insert(candidate.reason.size() - 1,
                            fmt::format(", selection {:.3g} s", candidate.select_s));
  }
  return candidate;
}

ScheduleChoice choose_schedule(const LayerShape& shape, const Routing& routing,
                               const ScheduleOptions& options, const MachineRates& rates) {
  rates.validate();
  const SkewMetrics skew = compute_skew(routing);
  ScheduleChoice choice;
  for (ScheduleRates candidate : rates.candidates) {
    if (!candidate.hold_for(shape)) continue;
    candidate.schedule = candidate_options(options, candidate);
    // Of the stages that the schedule decides; the router's are not among them, whether they run or not.
    const AnalyticCost cost =
        analytic_cost(shape, routing, build_schedule(routing, candidate.schedule), true);
    choice.candidates.push_back(predict_schedule(shape, skew, cost, candidate, rates.size,
                                                 rates.selection ? &*rates.selection : nullptr));
  }
  if (choice.candidates.empty()) {
    throw InvalidArgument("grid_cols", fmt::to_string(shape.grid_cols),
                          "is beyond what any candidate's rates hold for");
  }
  std::vector<ScheduleCandidate> ranked = choice.candidates;
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.predicted_s < b.predicted_s; });
  const ScheduleCandidate& best = ranked.front();
  choice.schedule = best.schedule;
  choice.reason = fmt::format("{}, predicted {:.3g} s", to_string(best.schedule), best.predicted_s);
  if (ranked.size() > 1) {
    choice.reason += fmt::format("; next {} at {:.2f}x", to_string(ranked[1].schedule),
                                 ranked[1].predicted_s / best.predicted_s);
  }
  choice.reason += fmt::format(" (rates: {})", rates.source);
  return choice;
}

}  // namespace moescope
