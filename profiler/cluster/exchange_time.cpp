#include "profiler/cluster/exchange_time.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.hpp"

namespace moescope {
namespace {

double further_peers(std::int64_t peers) { return static_cast<double>(std::max<std::int64_t>(peers - 1, 0)); }

}  // namespace

std::vector<RankLoad> rank_loads(std::span<const std::int64_t> bytes, const RankGroup& group) {
  const std::int64_t ranks = group.ranks;
  if (std::ssize(bytes) != ranks * ranks) {
    throw InternalError(fmt::format("{} links of {} ranks", bytes.size(), ranks));
  }
  std::vector<RankLoad> loads;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    RankLoad out;
    RankLoad in;
    for (std::int64_t peer = 0; peer < ranks; ++peer) {
      const bool near = group.node_of(peer) == group.node_of(rank);
      const auto add = [&](RankLoad& sum, std::int64_t count) {
        (near ? sum.link_bytes : sum.nic_bytes) += count;
        (near ? sum.link_peers : sum.nic_peers) += count > 0 ? 1 : 0;
      };
      add(out, bytes[static_cast<std::size_t>(rank * ranks + peer)]);
      add(in, bytes[static_cast<std::size_t>(peer * ranks + rank)]);
    }
    loads.push_back({.link_bytes = std::max(out.link_bytes, in.link_bytes),
                     .nic_bytes = std::max(out.nic_bytes, in.nic_bytes),
                     .link_peers = std::max(out.link_peers, in.link_peers),
                     .nic_peers = std::max(out.nic_peers, in.nic_peers)});
  }
  return loads;
}

ExchangeTime exchange_time(std::span<const std::int64_t> bytes, const RankGroup& group,
                           const TransferCurve& curve, const ClusterSpec& cluster) {
  ExchangeTime result;
  for (const std::int64_t count : bytes) {
    result.bytes += count;
  }
  const std::vector<RankLoad> loads = rank_loads(bytes, group);
  for (std::size_t rank = 0; rank < loads.size(); ++rank) {
    const RankLoad& load = loads[rank];
    const auto link_bytes = static_cast<double>(load.link_bytes);
    const auto nic_bytes = static_cast<double>(load.nic_bytes);
    const double link_s = load.link_bytes > 0
                              ? curve.time_s(link_bytes) + further_peers(load.link_peers) * cluster.message_s
                              : 0;
    double nic_s = 0;
    double bound_s = link_bytes / cluster.link_bytes_per_s;
    if (load.nic_bytes > 0) {
      if (cluster.nic_bytes_per_s == 0) {
        throw InvalidArgument("ranks", fmt::to_string(group.ranks),
                              fmt::format("{} has no network between nodes", cluster.name));
      }
      nic_s = cluster.nic_latency_s + further_peers(load.nic_peers) * cluster.message_s +
              nic_bytes / cluster.nic_bytes_per_s;
      bound_s = std::max(bound_s, nic_bytes / cluster.nic_bytes_per_s);
    }
    result.rank_s.push_back(std::max(link_s, nic_s));
    result.bound_s = std::max(result.bound_s, bound_s);
    result.busiest_bytes = std::max({result.busiest_bytes, load.link_bytes, load.nic_bytes});
    if (result.rank_s.back() > result.time_s) {
      result.time_s = result.rank_s.back();
      result.slowest = static_cast<std::int64_t>(rank);
      result.by_nic = nic_s > link_s;
    }
  }
  return result;
}

}  // namespace moescope
