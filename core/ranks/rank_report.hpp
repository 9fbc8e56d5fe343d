#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/layer/stage.hpp"
#include "core/ranks/exchange_plan.hpp"

namespace moescope {

/// Time of one stage on one rank.
struct RankTime {
  std::int64_t rank = 0;
  Stage stage = Stage::kLayer;
  double time_s = 0;
};

/// What the last run of a layer on several ranks did.
struct RankReport {
  RankOptions options;
  std::vector<RankTime> times;        ///< of every stage on every rank that has work in it
  std::vector<std::int64_t> tokens;   ///< [P] tokens at home
  std::vector<std::int64_t> pairs;    ///< [P] pairs computed
  std::vector<std::int64_t> experts;  ///< [P] experts stored
  LinkBytes planned;                  ///< by the plan
  LinkBytes moved;                    ///< counted in the messages
  /// Measured, where exchanges run beside other work: the layer's time beyond that of the same layer in which
  /// nothing travels, and in which X does not.
  std::optional<double> exposed_s;
  std::optional<double> exposed_rows_s;
  double ranks_per_token = 0;
  double remote_ranks_per_token = 0;
};

}  // namespace moescope
