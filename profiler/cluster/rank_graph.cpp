#include "profiler/cluster/rank_graph.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/index.hpp"

namespace moescope {
namespace {

using Tasks = std::vector<std::int64_t>;

/// NodeType of Chakra's et_def.proto.
enum class ChakraNode : int { kCompute = 4, kSend = 5, kReceive = 6 };

Tasks joined(const Tasks& a, const Tasks& b) {
  Tasks all = a;
  all.insert(all.end(), b.begin(), b.end());
  std::ranges::sort(all);
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

/// Tasks of one rank, in an order in which each can begin.
class RankBuilder {
 public:
  RankBuilder(const RanksModel& model, std::int64_t rank) : model_(model), rank_(rank) {}

  std::vector<RankTask> build() {
    const RankModel& own = model_.ranks[at(rank_)];
    if (model_.group.ranks == 1) {
      compute(Stage::kLayer, "layer", model_.layer_s, {});
      return std::move(tasks_);
    }
    const Tasks router =
        compute(Stage::kRouterSelect, "router", own.router_project_s + own.router_select_s, {});
    const bool gather = !model_.traffic.pairs.empty();
    const Tasks& rows_after = gather && model_.overlap ? Tasks{} : router;
    std::vector<Tasks> arrived;
    for (std::int64_t chunk = 0; chunk < model_.chunks; ++chunk) {
      arrived.push_back(messages(Stage::kTokenDispatch, fmt::format("rows chunk {}", chunk),
                                 model_.traffic.rows[at(chunk)], chunk, rows_after));
    }
    Tasks pairs;
    if (gather) {
      pairs = messages(Stage::kTokenDispatch, "pairs", model_.traffic.pairs, model_.chunks, router);
    }
    Tasks before = router;
    Tasks returned;
    for (std::int64_t chunk = 0; chunk < model_.chunks; ++chunk) {
      const Tasks ready = joined(joined(before, pairs), arrived[at(chunk)]);
      before = compute(Stage::kExperts, fmt::format("experts chunk {}", chunk),
                       model_.times.experts_s[at(chunk)][at(rank_)], ready);
      returned =
          joined(returned, messages(Stage::kTokenCombine, fmt::format("returns chunk {}", chunk),
                                    model_.traffic.returns[at(chunk)], model_.chunks + 1 + chunk, before));
    }
    if (model_.overlap) {
      before = compute(Stage::kSharedMlp, "shared_mlp", own.shared_s, before);
    }
    before = compute(Stage::kTokenCombine, "add", own.sum_s, joined(before, returned));
    if (!model_.overlap) {
      compute(Stage::kSharedMlp, "shared_mlp", own.shared_s, before);
    }
    return std::move(tasks_);
  }

 private:
  /// What others wait for instead: `after` itself where there is nothing to do.
  Tasks compute(Stage stage, std::string name, double time_s, Tasks after) {
    if (time_s <= 0) {
      return after;
    }
    tasks_.push_back({.work = RankWork::kCompute,
                      .stage = stage,
                      .name = std::move(name),
                      .time_s = time_s,
                      .bytes = 0,
                      .peer = -1,
                      .tag = 0,
                      .after = std::move(after)});
    return {std::ssize(tasks_) - 1};
  }

  /// Sends and receives of one exchange; returns the receives.
  Tasks messages(Stage stage, const std::string& name, std::span<const std::int64_t> bytes, std::int64_t tag,
                 const Tasks& after) {
    Tasks received;
    const std::int64_t ranks = model_.group.ranks;
    const auto add = [&](RankWork work, std::int64_t peer, std::int64_t count) {
      const bool sends = work == RankWork::kSend;
      tasks_.push_back({.work = work,
                        .stage = stage,
                        .name = fmt::format("{} {} {}", name, sends ? "to" : "from", peer),
                        .time_s = 0,
                        .bytes = count,
                        .peer = peer,
                        .tag = tag,
                        .after = sends ? after : Tasks{}});
    };
    // Each begins with its own neighbour, so that not all send to the same rank at first.
    for (std::int64_t step = 1; step < ranks; ++step) {
      const std::int64_t to = (rank_ + step) % ranks;
      const std::int64_t from = (rank_ + ranks - step) % ranks;
      if (const std::int64_t count = bytes[at(rank_ * ranks + to)]; count > 0) {
        add(RankWork::kSend, to, count);
      }
      if (const std::int64_t count = bytes[at(from * ranks + rank_)]; count > 0) {
        add(RankWork::kReceive, from, count);
        received.push_back(std::ssize(tasks_) - 1);
      }
    }
    return received;
  }

  const RanksModel& model_;
  std::int64_t rank_;
  std::vector<RankTask> tasks_;
};

std::int64_t whole(double time_s, double unit_s) {
  return std::max<std::int64_t>(1, std::llround(time_s / unit_s));
}

}  // namespace

RankGraph rank_graph(const RanksModel& model) {
  RankGraph graph;
  for (std::int64_t rank = 0; rank < model.group.ranks; ++rank) {
    graph.ranks.push_back(RankBuilder(model, rank).build());
  }
  return graph;
}

std::string goal_text(const RankGraph& graph) {
  constexpr double kNano = 1e-9;
  std::string text;  // fmt::format_to() would compile all of {fmt} once more
  text += fmt::format("num_ranks {}\n", graph.ranks.size());
  for (std::size_t rank = 0; rank < graph.ranks.size(); ++rank) {
    text += fmt::format("\nrank {} {{\n", rank);
    std::size_t label = 0;
    for (const RankTask& task : graph.ranks[rank]) {
      ++label;
      switch (task.work) {
        case RankWork::kCompute:
          text += fmt::format("l{}: calc {}\n", label, whole(task.time_s, kNano));
          break;
        case RankWork::kSend:
          text += fmt::format("l{}: send {}b to {} tag {}\n", label, task.bytes, task.peer, task.tag);
          break;
        case RankWork::kReceive:
          text += fmt::format("l{}: recv {}b from {} tag {}\n", label, task.bytes, task.peer, task.tag);
          break;
      }
      for (const std::int64_t before : task.after) {
        text += fmt::format("l{} requires l{}\n", label, before + 1);
      }
    }
    text += "}\n";
  }
  return text;
}

std::string chakra_json(const RankGraph& graph, std::int64_t rank) {
  constexpr double kMicrosecond = 1e-6;
  nlohmann::ordered_json nodes = nlohmann::ordered_json::array();
  for (const RankTask& task : graph.ranks[at(rank)]) {
    const bool computes = task.work == RankWork::kCompute;
    const bool sends = task.work == RankWork::kSend;
    const ChakraNode type = computes ? ChakraNode::kCompute
                            : sends  ? ChakraNode::kSend
                                     : ChakraNode::kReceive;
    nlohmann::ordered_json node = {{"Id", nodes.size()},
                                   {"Name", task.name},
                                   {"NodeType", static_cast<int>(type)},
                                   {"is_cpu_op", false},
                                   {"runtime", computes ? whole(task.time_s, kMicrosecond) : 0},
                                   {"data_deps", task.after}};
    if (!computes) {
      node["tensor_size"] = task.bytes;
      node["comm_type"] = 0;
      node["comm_priority"] = 0;
      node["comm_size"] = task.bytes;
      node["comm_src"] = sends ? rank : task.peer;
      node["comm_dst"] = sends ? task.peer : rank;
      node["comm_tag"] = task.tag;
    }
    nodes.push_back(std::move(node));
  }
  nlohmann::ordered_json document;
  document["workload_graph"] = std::move(nodes);
  return document.dump(1) + "\n";
}

}  // namespace moescope
