#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "core/cost/traffic.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/skew.hpp"

namespace moescope {

/// What the cost model knows of one schedule on a machine. Rates are sustained, for the whole machine.
struct ScheduleRates {
  /// Kind and strip rule alone count here: determinism, group size and tile size are the caller's.
  ScheduleOptions schedule = {.kind = ScheduleKind::kTokenCentric};
  double fixed_s = 0;             ///< launches, and whatever else does not grow with the batch
  double memory_bytes_per_s = 0;  ///< main memory or HBM
  double cache_bytes_per_s = 0;   ///< last-level cache
  double flop_per_s = 0;
  double pair_s = 0;             ///< seconds a selected pair, whatever its bytes; 0: nothing
  double step_s = 0;             ///< seconds a step of the longest chain (ScheduleWork); 0: nothing
  double chain_bytes_per_s = 0;  ///< of what one multiprocessor reads in that chain; 0: nothing
  /// Groups, strips and dense_masked as matrix products: every token x expert of an item is computed. False:
  /// the selected pairs alone.
  bool executes_masked = false;
  /// What is read again is read soon again (the tiles of a strip), so it is still in the cache. False: rows
  /// come back at any time, and stay only as far as the cache holds them.
  bool reuse_is_near = true;
  /// How the times combine, as the p of a norm: 1 adds them up, infinity takes the longest.
  double sharpness = std::numeric_limits<double>::infinity();
  /// Widest grid that the rates hold for; on a wider one the schedule is no candidate.
  std::int64_t max_grid_cols = std::numeric_limits<std::int64_t>::max();

  bool hold_for(const LayerShape& shape) const { return shape.grid_cols <= max_grid_cols; }
};

/// What the router's selection takes, which hands a schedule pairs or strips: seconds are the sum of these
/// numbers times select_terms(). Few tokens and many are selected for in different ways
/// (core/tiling/selection_form.hpp).
struct SelectionRates {
  static constexpr std::size_t kTerms = 7;
  using Terms = std::array<double, kTerms>;
  Terms pairs_of_few{};
  Terms pairs_of_many{};
  Terms strips_of_few{};
  Terms strips_of_many{};

  const Terms& of(const LayerShape& shape, bool strips, std::int64_t num_sms) const;
  double predicted_s(const LayerShape& shape, bool strips, std::int64_t num_sms) const;
};
/// 1; the longer side; K; K times the side; L; L K; L (Nr + Nc).
SelectionRates::Terms select_terms(const LayerShape& shape);

/// What of a machine work is cut for.
struct MachineSize {
  double cache_bytes = 0;    ///< capacity of the last-level cache
  std::int64_t num_sms = 0;  ///< multiprocessors of a GPU; 0: none, and no chains are counted
};

struct MachineRates {
  std::string source;  ///< where the numbers come from; printed with the reasons
  MachineSize size;
  std::vector<ScheduleRates> candidates;    ///< what the backend runs; ties go to the earlier one
  std::optional<SelectionRates> selection;  ///< where it takes as long for all: none

  /// Throws InvalidArgument naming the first number that is not positive and finite (fixed_s: not negative),
  /// or the candidates when there is none or `auto` is among them.
  void validate() const;
};

/// What a schedule has to move and to compute in the stages that it decides, as the cost model sees it.
struct ScheduleWork {
  double memory_bytes = 0;     ///< compulsory, and what the cache does not keep
  double requested_bytes = 0;  ///< from the cache
  double flop = 0;
  double pairs = 0;  ///< of schedules that go pair by pair
  /// The longest chain of what follows one on the other: of pair after pair the pairs of one worker, of
  /// strips the units of one multiprocessor.
  double steps = 0;
  double chain_bytes = 0;  ///< of strips: W and V that one multiprocessor reads

  /// The model: a fixed part, and the norm of the times.
  double predicted_s(const ScheduleRates& rates) const;
};

/// Of the requested bytes beyond the compulsory ones, those that come back late miss the cache for the part
/// of the rows it cannot hold: 1 - cache_bytes / (2 * effective_experts * row_bytes), effective_experts being
/// the size of the equally used set in which two pairs meet as often as in this one.
ScheduleWork schedule_work(const LayerShape& shape, const SkewMetrics& skew, const AnalyticCost& cost,
                           const ScheduleRates& rates, const MachineSize& machine);

/// Predicted time of the stages that a schedule decides: `schedule` and the expert stages, and where the
/// machine has rates for it the router's selection in the form that this schedule takes.
struct ScheduleCandidate {
  ScheduleOptions schedule;
  double fixed_s = 0;
  double memory_s = 0;     ///< bytes from memory: compulsory, and what the cache does not keep
  double cache_s = 0;      ///< requested bytes from the cache
  double flop_s = 0;       ///< FLOP
  double chain_s = 0;      ///< pairs, steps and what is read in a chain: the longest of them
  double select_s = 0;     ///< the router's selection
  double predicted_s = 0;  ///< fixed_s, the norm of the times, and select_s
  std::string reason;      ///< one line: the times, bytes and FLOP, which one binds
};

struct ScheduleChoice {
  ScheduleOptions schedule;                   ///< what was asked for with the winner's kind and strip rule
  std::vector<ScheduleCandidate> candidates;  ///< in the order of MachineRates::candidates
  std::string reason;  ///< one line: winner, its predicted time, the next best, the rates' source

  /// `reason`, then each candidate's, a line each.
  std::string explanation() const;
};

/// What was asked for (as auto) with the kind and the strip rule of a candidate.
ScheduleOptions candidate_options(const ScheduleOptions& asked, const ScheduleRates& candidate);

/// Time of a schedule that costs `cost` on a routing of this skew.
ScheduleCandidate predict_schedule(const LayerShape& shape, const SkewMetrics& skew, const AnalyticCost& cost,
                                   const ScheduleRates& rates, const MachineSize& machine,
                                   const SelectionRates* selection = nullptr);

/// Picks the schedule of the expert stage with the smallest predicted time for this routing, among the
/// candidates whose rates hold for the shape, from the analytic bytes and FLOP of traffic.hpp. Builds every
/// candidate to count its items, one at a time. `options` gives all but kind and strip rule
/// (candidate_options). That every candidate can run this layer is the caller's to see to. Deterministic.
/// Throws InvalidArgument for rates, or a routing that is not of this shape.
ScheduleChoice choose_schedule(const LayerShape& shape, const Routing& routing,
                               const ScheduleOptions& options, const MachineRates& rates);

}  // namespace moescope
