#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "profiler/cluster/cluster_spec.hpp"

/// How long an exchange takes on a cluster, from the bytes of every link.
namespace moescope {

/// What one rank moves in one exchange. Messages go straight from rank to rank.
struct RankLoad {
  std::int64_t link_bytes = 0;  ///< inside the node: sent or received, whichever is more
  std::int64_t nic_bytes = 0;   ///< between nodes, likewise
  std::int64_t link_peers = 0;  ///< ranks of the node that it sends to or receives from, whichever are more
  std::int64_t nic_peers = 0;
};
/// `bytes`: [P*P], sender * P + receiver, as of LinkBytes.
std::vector<RankLoad> rank_loads(std::span<const std::int64_t> bytes, const RankGroup& group);

struct ExchangeTime {
  double time_s = 0;               ///< of the slowest rank: nobody goes on before it
  double bound_s = 0;              ///< the same if links and NICs ran at their rates, without any start
  std::vector<double> rank_s;      ///< [P]
  std::int64_t slowest = 0;        ///< which rank it is
  bool by_nic = false;             ///< whether its NIC takes longer than its links
  std::int64_t busiest_bytes = 0;  ///< most bytes of one rank over links or NIC
  std::int64_t bytes = 0;          ///< of all ranks
};
/// A rank's links take the curve's time of its bytes and message_s for each peer beyond the first; its NIC
/// nic_latency_s, message_s for each peer beyond the first, and its bytes at nic_bytes_per_s. Both work at
/// once; the slower one decides. Throws InvalidArgument("ranks", ...) for bytes between nodes where the
/// cluster has no network.
ExchangeTime exchange_time(std::span<const std::int64_t> bytes, const RankGroup& group,
                           const TransferCurve& curve, const ClusterSpec& cluster);

}  // namespace moescope
