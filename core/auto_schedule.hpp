#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/layer_shape.hpp"
#include "core/schedule.hpp"
#include "core/traffic.hpp"

namespace moescope {

/// What the cost model knows of a backend on a machine. Rates are sustained, for the whole machine.
struct MachineRates {
  std::string source;             ///< where the numbers come from; printed with the reasons
  double memory_bytes_per_s = 0;  ///< main memory or HBM
  double cache_bytes_per_s = 0;   ///< last-level cache
  double pair_flop_per_s = 0;     ///< dot products and added rows of single pairs
  double matrix_flop_per_s = 0;   ///< blocked matrix products in the storage dtype
  /// Groups and strips are matrix products over every token x expert of the item (tensor cores). False: their
  /// selected pairs alone, as the CPU computes them. dense_masked is a matrix product either way.
  bool items_are_matrices = false;
  std::vector<ScheduleKind> candidates;  ///< what the backend runs; ties go to the earlier one

  /// Throws InvalidArgument naming the first rate that is not positive and finite, or the candidates when
  /// there is none or `auto` is among them.
  void validate() const;
};

/// Predicted time of the expert stage under one schedule.
struct ScheduleCandidate {
  ScheduleKind kind = ScheduleKind::kTokenCentric;
  double memory_s = 0;     ///< compulsory bytes from memory
  double cache_s = 0;      ///< requested bytes from the cache
  double flop_s = 0;       ///< executed FLOP
  double predicted_s = 0;  ///< the largest of the three: they overlap
  std::string reason;      ///< one line: the three times, bytes and FLOP, which one binds
};

struct ScheduleChoice {
  ScheduleKind kind = ScheduleKind::kTokenCentric;
  std::vector<ScheduleCandidate> candidates;  ///< in the order of MachineRates::candidates
  std::string reason;  ///< one line: winner, its predicted time, the next best, the rates' source
};

/// Picks the schedule of the expert stage with the smallest predicted time for this routing, from the
/// analytic bytes and FLOP of traffic.hpp. Builds every candidate to count its items, one at a time.
/// `options` gives group_size and deterministic; its kind is not read. Deterministic. Throws InvalidArgument
/// for rates, or a routing that is not of this shape.
ScheduleChoice choose_schedule(const LayerShape& shape, const Routing& routing,
                               const ScheduleOptions& options, const MachineRates& rates);

}  // namespace moescope
