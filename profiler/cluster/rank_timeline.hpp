#pragma once

#include <cstdint>
#include <vector>

#include "core/layer/stage.hpp"
#include "core/schedule/rank_options.hpp"

/// When each rank does what: exchanges among ranks, and stages on each, one after another or beside each
/// other.
namespace moescope {

/// Times of a layer's parts, on every rank.
struct RankTimes {
  std::vector<double> router_s;                ///< [P] of the home tokens
  std::vector<std::vector<double>> experts_s;  ///< [C][P] schedule and experts of each chunk
  std::vector<double> shared_s;                ///< [P] the shared MLP of the home tokens
  std::vector<double> sum_s;                   ///< [P] adding what came back
  double pairs_s = 0;                          ///< gather: experts and gates to where they are computed
  std::vector<double> rows_s;     ///< [C] rows of X to other ranks, in a dispatch with their pairs
  std::vector<double> returns_s;  ///< [C] partial sums back
};

/// An interval of one rank (an exchange: rank -1, all of them).
struct RankEvent {
  std::int64_t rank = -1;
  Stage stage = Stage::kLayer;
  std::int64_t chunk = 0;
  double begin_s = 0;
  double end_s = 0;
};

struct RankTimeline {
  double layer_s = 0;             ///< until the last rank is done
  std::vector<double> rank_s;     ///< [P] when each is
  std::vector<RankEvent> events;  ///< by begin
};

/// Plays the times. An exchange begins when every rank has what it sends and the one before is over, and ends
/// for all together; a rank does one stage at a time. Router and shared MLP are not cut into chunks.
///
/// `overlap` false: a rank waits for each exchange. True: in a gather rows travel behind the router, and
/// experts and gates after it; in both exchanges chunks travel while others are computed, and sums return
/// behind the shared MLP, which a rank does when its experts are done. What an exchange takes from a GPU that
/// computes beside it is not in the model.
RankTimeline play(const RankTimes& times, Exchange exchange, bool overlap);

/// The same with exchanges that take no time.
RankTimes without_exchanges(RankTimes times);

}  // namespace moescope
