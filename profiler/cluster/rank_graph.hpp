#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/stage.hpp"
#include "profiler/cluster/ranks_model.hpp"

/// A modelled layer as work of each rank that depends on other work: what simulators of networks take.
namespace moescope {

enum class RankWork : std::uint8_t { kCompute, kSend, kReceive };

/// One piece of work of one rank.
struct RankTask {
  RankWork work = RankWork::kCompute;
  Stage stage = Stage::kLayer;
  std::string name;                 ///< "experts chunk 1", "rows chunk 0 to 3"
  double time_s = 0;                ///< of kCompute
  std::int64_t bytes = 0;           ///< of a message
  std::int64_t peer = -1;           ///< of a message: the other rank
  std::int64_t tag = 0;             ///< of a message: the same where it is sent and received
  std::vector<std::int64_t> after;  ///< indices of tasks of the same rank, all smaller than its own
};

/// Tasks of every rank: [P][]. Messages have the bytes of the plan, each sent once and received once; stages
/// the modelled times. What may overlap depends on nothing of each other, as RankTimeline has it.
struct RankGraph {
  std::vector<std::vector<RankTask>> ranks;
};
RankGraph rank_graph(const RanksModel& model);

/// GOAL text, which txt2bin of LogGOPSim and ATLAHS reads (github.com/spcl/LogGOPSim): a block of each rank
/// with calc (nanoseconds), send and recv (bytes), and what each requires. A stage takes a nanosecond at
/// least.
std::string goal_text(const RankGraph& graph);

/// Execution trace of one rank in the JSON form that Chakra's feeder reads (github.com/mlcommons/chakra,
/// src/feeder/json_node.cpp): COMP_NODE with its runtime in whole microseconds, at least one; COMM_SEND_NODE
/// and COMM_RECV_NODE with bytes, source, destination and tag. Chakra has no all-to-all with counts.
std::string chakra_json(const RankGraph& graph, std::int64_t rank);

}  // namespace moescope
