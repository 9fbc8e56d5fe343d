#include "experiments/clusters/cluster_exports.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "profiler/cluster/rank_graph.hpp"

namespace moescope {

ClusterExports::ClusterExports(const std::string& goal, const std::string& chakra, std::int64_t ranks,
                               const std::vector<std::filesystem::path>& kept) {
  for (const auto& [field, value] : {std::pair{"goal", &goal}, std::pair{"chakra", &chakra}}) {
    if (!value->empty() && ranks == 0) {
      throw InvalidArgument(field, *value,
                            "is of one layer: name one of --ranks, --placement, --exchange, --chunks, "
                            "--schedule and --workload");
    }
  }
  if (!goal.empty()) {
    goal_.emplace("goal", goal, kept);
  }
  if (!chakra.empty()) {
    folder_.emplace(chakra);
    std::vector<std::string> names;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      names.push_back(fmt::format("moescope.{}.json", rank));
    }
    folder_->require_none_of(names);
    for (const std::string& name : names) {
      traces_.emplace_back("chakra", folder_->path() / name, kept);
    }
  }
}

std::string ClusterExports::write(const RanksModel& model) const {
  std::string text;
  if (!goal_ && !folder_) {
    return text;
  }
  const RankGraph graph = rank_graph(model);
  if (goal_) {
    goal_->write(goal_text(graph));
    text += fmt::format("goal:   {}\n", goal_->path().string());
  }
  for (std::size_t rank = 0; rank < traces_.size(); ++rank) {
    traces_[rank].write(chakra_json(graph, static_cast<std::int64_t>(rank)));
  }
  if (folder_) {
    text += fmt::format("chakra: {}/moescope.RANK.json\n", folder_->path().string());
  }
  return text;
}

}  // namespace moescope
