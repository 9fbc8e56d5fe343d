#include "profiler/cluster/cluster_spec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_field.hpp"
#include "core/files/project_path.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

constexpr std::array<std::pair<Basis, std::string_view>, 3> kBases = {
    {{Basis::kMeasured, "measured"}, {Basis::kDataSheet, "data sheet"}, {Basis::kAssumption, "assumption"}}};

constexpr double kMostSeconds = 1;
constexpr double kLeastRate = 1e6;
constexpr double kMostRate = 1e15;

/// Reads one value after another out of "values", and keeps sources.
class Values {
 public:
  Values(JsonField values, ClusterSpec& cluster) : values_(std::move(values)), cluster_(cluster) {}

  std::int64_t whole(const std::string& key, std::int64_t low, std::int64_t high) {
    return take(key).integer(low, high);
  }
  double number(const std::string& key, double low, double high) {
    const JsonField value = take(key);
    const double number = value.number();
    if (!(number >= low && number <= high)) {
      value.fail(fmt::format("must be in [{:g}, {:g}]", low, high));
    }
    return number;
  }
  TransferCurve curve(const std::string& name) {
    return {.small_s = number(name + "_small_s", 0, kMostSeconds),
            .alpha_s = number(name + "_alpha_s", 0, kMostSeconds),
            .bytes_per_s = number(name + "_bytes_per_s", kLeastRate, kMostRate)};
  }
  bool has(const std::string& key) const { return values_.has(key); }
  void check_unknown() const {
    for (const auto& [key, value] : values_.members()) {
      if (!seen_.contains(key)) {
        value.fail("is not a value of a cluster");
      }
    }
  }

 private:
  JsonField take(const std::string& key) {
    seen_.insert(key);
    const JsonField entry = values_.member(key);
    const JsonField source = entry.member("source");
    if (source.text().empty()) {
      source.fail("must say where the value comes from");
    }
    const JsonField basis = entry.member("basis");
    const std::string word = basis.text();
    const auto known = std::ranges::find(kBases, word, &std::pair<Basis, std::string_view>::second);
    if (known == kBases.end()) {
      basis.fail("must be measured, data sheet or assumption");
    }
    cluster_.sources[key] = source.text();
    cluster_.bases[key] = known->first;
    return entry.member("value");
  }

  JsonField values_;
  ClusterSpec& cluster_;
  std::set<std::string> seen_;
};

}  // namespace

std::string_view to_string(Basis basis) {
  return std::ranges::find(kBases, basis, &std::pair<Basis, std::string_view>::first)->second;
}

double TransferCurve::time_s(double bytes) const {
  if (bytes <= 0) {
    return 0;
  }
  if (bytes >= kLargeExchangeBytes) {
    return alpha_s + bytes / bytes_per_s;
  }
  const double part =
      std::max(0.0, bytes - kSmallExchangeBytes) / (kLargeExchangeBytes - kSmallExchangeBytes);
  return small_s + part * (alpha_s + kLargeExchangeBytes / bytes_per_s - small_s);
}

RankGroup ClusterSpec::group(std::int64_t ranks) const {
  const auto refuse = [&](const std::string& why) {
    throw InvalidArgument("ranks", fmt::to_string(ranks), why);
  };
  if (ranks < 1 || ranks > kMaxRanks) {
    refuse(fmt::format("must be from 1 to {}", kMaxRanks));
  }
  if (ranks <= gpus_per_node) {
    return {ranks, 1};
  }
  if (nic_bytes_per_s == 0) {
    refuse(fmt::format("{} has {} GPUs and no network to others", name, gpus()));
  }
  if (ranks % gpus_per_node != 0) {
    refuse(fmt::format("must fill its nodes: a multiple of {}, or less", gpus_per_node));
  }
  return {ranks, ranks / gpus_per_node};
}

std::vector<std::string> ClusterSpec::extrapolated(std::int64_t ranks, double bytes) const {
  std::vector<std::string> notes;
  if (ranks > measured_ranks) {
    notes.push_back(fmt::format("exchanges of more than {} GPUs were not measured", measured_ranks));
  }
  if (ranks > gpus()) {
    notes.push_back(
        fmt::format("{} has {} GPUs: further nodes are assumed to be like its own", name, gpus()));
  }
  if (bytes > measured_bytes) {
    notes.push_back(
        fmt::format("exchanges of more than {:g} bytes a rank were not measured: the line of "
                    "smaller ones goes on",
                    measured_bytes));
  }
  std::string assumed;
  std::string sheet;
  for (const auto& [key, basis] : bases) {
    const bool of_network = key.starts_with("nic_");
    if ((of_network && ranks <= gpus_per_node) || (key == "message_s" && ranks <= 2) ||
        basis == Basis::kMeasured || key == "nodes" || key == "gpus_per_node") {
      continue;
    }
    std::string& list = basis == Basis::kAssumption ? assumed : sheet;
    list += (list.empty() ? "" : ", ") + key;
  }
  if (!assumed.empty()) {
    notes.push_back("assumed: " + assumed);
  }
  if (!sheet.empty()) {
    notes.push_back("of data sheets: " + sheet);
  }
  return notes;
}

ClusterSpec parse_cluster(std::string_view json, std::string_view path) {
  const auto document = parse_json<nlohmann::json>(json, {std::string(path), ""});
  const JsonField root(document, path);
  for (const auto& [key, value] : root.members()) {
    if (key != "name" && key != "device" && key != "values") {
      value.fail("is not a field of a cluster");
    }
  }
  ClusterSpec cluster;
  cluster.name = root.member("name").text();
  cluster.device = root.member("device").text();
  Values values(root.member("values"), cluster);
  cluster.gpus_per_node = values.whole("gpus_per_node", 1, kMaxRanks);
  cluster.nodes = values.whole("nodes", 1, kMaxRanks);
  if (cluster.gpus() > kMaxRanks) {
    root.member("values").member("nodes").fail(fmt::format("gives more than {} GPUs", kMaxRanks));
  }
  cluster.measured_ranks = values.whole("measured_ranks", 1, kMaxRanks);
  cluster.measured_bytes = values.number("measured_bytes", 0, 1e15);
  cluster.all_gather = values.curve("all_gather");
  cluster.all_to_all = values.curve("all_to_all");
  cluster.message_s = values.number("message_s", 0, kMostSeconds);
  cluster.link_bytes_per_s = values.number("link_bytes_per_s", kLeastRate, kMostRate);
  if (cluster.nodes > 1 || values.has("nic_bytes_per_s") || values.has("nic_latency_s")) {
    cluster.nic_bytes_per_s = values.number("nic_bytes_per_s", kLeastRate, kMostRate);
    cluster.nic_latency_s = values.number("nic_latency_s", 0, kMostSeconds);
  }
  values.check_unknown();
  return cluster;
}

ClusterSpec read_cluster(const fs::path& file) { return parse_cluster(read_text(file), file.string()); }

std::vector<std::string> known_clusters() {
  std::vector<std::string> names;
  if (const auto folder = project_path(kClustersFolder)) {
    std::error_code failed;  // then there are none
    for (const fs::directory_entry& entry : fs::directory_iterator(*folder, failed)) {
      if (entry.path().extension() == ".json") {
        names.push_back(entry.path().stem());
      }
    }
  }
  std::ranges::sort(names);
  return names;
}

ClusterSpec find_cluster(const std::string& name) {
  if (name.find('/') != std::string::npos || name.ends_with(".json")) {
    return read_cluster(name);
  }
  const std::vector<std::string> known = known_clusters();
  if (std::ranges::find(known, name) == known.end()) {
    throw InvalidArgument("cluster", name,
                          fmt::format("must be a file of a cluster, or one of {}", fmt::join(known, ", ")));
  }
  return read_cluster(*project_path(fs::path(kClustersFolder) / (name + ".json")));
}

}  // namespace moescope
