#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/schedule/rank_group.hpp"

/// GPUs that share a layer, as data: data/clusters/NAME.json, every value with its source.
namespace moescope {

inline constexpr const char* kClustersFolder = "data/clusters";

/// What stands behind a value.
enum class Basis : std::uint8_t { kMeasured, kDataSheet, kAssumption };
/// "measured", "data sheet", "assumption".
std::string_view to_string(Basis basis);

/// Time of an exchange inside a node, by the bytes that its busiest rank sends or receives, whichever is
/// more: `small_s` up to kSmallExchangeBytes; from kLargeExchangeBytes on `alpha_s` + bytes / `bytes_per_s`;
/// a straight line between. A library sends small messages by another protocol, and one line for all
/// sizes misses the small ones by half.
struct TransferCurve {
  double small_s = 0;
  double alpha_s = 0;
  double bytes_per_s = 0;

  /// 0 for no bytes.
  double time_s(double bytes) const;
};
/// 64 and 1024 rows of 1024 values in bf16: the smallest size that was measured, and the smallest that lies
/// on the line of the larger ones.
inline constexpr double kSmallExchangeBytes = 131'072;
inline constexpr double kLargeExchangeBytes = 2'097'152;

/// Values are in the units their keys say; every key of "values" is a member here.
struct ClusterSpec {
  std::string name;
  std::string device;  ///< folder of its GPUs in data/devices
  std::int64_t gpus_per_node = 1;
  std::int64_t nodes = 1;
  std::int64_t measured_ranks = 1;  ///< most GPUs whose exchanges were measured
  double measured_bytes = 0;        ///< most bytes of one exchange that was
  TransferCurve all_gather;         ///< every rank gets the same bytes of each other
  TransferCurve all_to_all;         ///< bytes of its own for each other
  double message_s = 0;             ///< more, for each rank beyond the first that a rank sends to
  double link_bytes_per_s = 0;      ///< of one GPU's links in one direction: no exchange is faster
  double nic_bytes_per_s = 0;       ///< of the NIC that each GPU has, in one direction; 0: no network
  double nic_latency_s = 0;         ///< before the first byte of an exchange between nodes

  std::map<std::string, std::string> sources;  ///< key -> where its value comes from
  std::map<std::string, Basis> bases;          ///< key -> what stands behind it

  std::int64_t gpus() const { return gpus_per_node * nodes; }
  /// The first `ranks` GPUs, filling node by node. More than there are get further nodes, where there is a
  /// network. Throws InvalidArgument("ranks", ...) for a number that does not fill its nodes, or that no
  /// link reaches.
  RankGroup group(std::int64_t ranks) const;
  /// Sentences on what nothing measured stands behind when `ranks` GPUs exchange up to `bytes`; empty where
  /// all of it was measured.
  std::vector<std::string> extrapolated(std::int64_t ranks, double bytes) const;
};

/// Reads {"name", "device", "values": {KEY: {"value", "basis", "source"}}}; keys of the network may be
/// missing where there is one node. Throws FileError naming `path`, the member and what is wrong: JSON that
/// does not parse, a key that is missing, unknown or without source, a value out of range.
ClusterSpec parse_cluster(std::string_view json, std::string_view path);
ClusterSpec read_cluster(const std::filesystem::path& file);

/// A cluster by the name of its file in data/clusters, or a file of one's own (with a '/' or ending in
/// .json). Throws InvalidArgument("cluster", ...) listing the known names, FileError.
ClusterSpec find_cluster(const std::string& name);
/// Names in data/clusters, sorted.
std::vector<std::string> known_clusters();

}  // namespace moescope
