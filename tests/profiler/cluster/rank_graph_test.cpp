#include "profiler/cluster/rank_graph.hpp"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <tuple>

#include "tests/support/paths.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

RanksModel model_of(Exchange exchange, std::int64_t ranks, std::int64_t chunks, bool overlap = true) {
  LayerShape shape = test::make_shape(96, 64, 16, 16, 12);
  shape.dtype = Dtype::kBF16;
  shape.shared_size = 64;
  const Routing routing = test::make_routing({shape, test::RoutingSkew::kPopular}, 7);
  const ClusterSpec cluster = find_cluster("h200-8x8");
  const DeviceSpec device = read_device(test::source_path("data/devices/h200-sxm/device.json"));
  const Calibration fits = read_calibration(test::source_path("data/devices/h200-sxm/calibration.json"));
  ScheduleOptions schedule;
  schedule.ranks = {cluster.group(ranks), PlacementSpec::parse("strips"), exchange};
  return model_ranks({shape, routing, false, schedule, chunks, overlap}, {cluster, device, fits, {}});
}

/// A task as an exported file tells it.
struct Read {
  char kind = 0;           ///< 'c', 's' or 'r'
  std::int64_t value = 0;  ///< time or bytes
  std::int64_t peer = -1;
  std::int64_t tag = -1;
  std::vector<std::int64_t> after;
};
using ReadGraph = std::vector<std::vector<Read>>;

/// GOAL by the grammar of txt2bin.re; labels must be there before they are required.
ReadGraph parse_goal(const std::string& text) {
  ReadGraph graph;
  std::map<std::string, std::int64_t> labels;
  const std::regex head("num_ranks ([0-9]+)");
  const std::regex rank("rank ([0-9]+) \\{");
  const std::regex calc("([a-zA-Z][a-zA-Z0-9_]*): calc ([0-9]+)");
  const std::regex message("([a-zA-Z][a-zA-Z0-9_]*): (send|recv) ([0-9]+)b (to|from) ([0-9]+) tag ([0-9]+)");
  const std::regex needs("([a-zA-Z][a-zA-Z0-9_]*) requires ([a-zA-Z][a-zA-Z0-9_]*)");
  std::istringstream lines(text);
  std::size_t ranks = 0;
  bool open = false;
  for (std::string line; std::getline(lines, line);) {
    std::smatch m;
    if (line.empty()) {
      continue;
    }
    if (std::regex_match(line, m, head)) {
      ranks = std::stoul(m[1]);
    } else if (std::regex_match(line, m, rank)) {
      EXPECT_EQ(std::stoul(m[1]), graph.size());
      EXPECT_FALSE(open);
      graph.emplace_back();
      labels.clear();
      open = true;
    } else if (line == "}") {
      open = false;
    } else if (std::regex_match(line, m, calc)) {
      EXPECT_TRUE(labels.emplace(m[1], std::ssize(graph.back())).second) << line;
      graph.back().push_back({'c', std::stoll(m[2]), -1, -1, {}});
    } else if (std::regex_match(line, m, message)) {
      EXPECT_EQ(m[2] == "send", m[4] == "to") << line;
      EXPECT_TRUE(labels.emplace(m[1], std::ssize(graph.back())).second) << line;
      graph.back().push_back(
          {m[2] == "send" ? 's' : 'r', std::stoll(m[3]), std::stoll(m[5]), std::stoll(m[6]), {}});
    } else if (std::regex_match(line, m, needs)) {
      EXPECT_TRUE(labels.contains(m[1]) && labels.contains(m[2])) << line;
      graph.back()[static_cast<std::size_t>(labels[m[1]])].after.push_back(labels[m[2]]);
    } else {
      ADD_FAILURE() << "no GOAL: " << line;
    }
  }
  EXPECT_FALSE(open);
  EXPECT_EQ(graph.size(), ranks);
  return graph;
}

/// Chakra's JSON with the members that its feeder asks for.
std::vector<Read> parse_chakra(const std::string& text, std::int64_t rank) {
  std::vector<Read> tasks;
  const auto document = nlohmann::json::parse(text);
  for (const auto& node : document.at("workload_graph")) {
    EXPECT_EQ(node.at("Id"), tasks.size());
    EXPECT_FALSE(node.at("Name").get<std::string>().empty());
    EXPECT_FALSE(node.at("is_cpu_op").get<bool>());
    const int type = node.at("NodeType");
    Read task;
    task.after = node.at("data_deps").get<std::vector<std::int64_t>>();
    if (type == 4) {
      task.kind = 'c';
      task.value = node.at("runtime");
    } else {
      EXPECT_TRUE(type == 5 || type == 6) << type;
      task.kind = type == 5 ? 's' : 'r';
      task.value = node.at("comm_size");
      task.tag = node.at("comm_tag");
      EXPECT_EQ(node.at(type == 5 ? "comm_src" : "comm_dst"), rank);
      task.peer = node.at(type == 5 ? "comm_dst" : "comm_src");
    }
    tasks.push_back(std::move(task));
  }
  return tasks;
}

/// Every message once sent and once received, all bytes of the plan, and nothing that waits for itself.
void expect_whole(const ReadGraph& graph, const RanksModel& model) {
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> sent;
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> received;
  std::int64_t bytes = 0;
  std::int64_t messages = 0;
  for (std::int64_t rank = 0; rank < std::ssize(graph); ++rank) {
    const std::vector<Read>& tasks = graph[static_cast<std::size_t>(rank)];
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      for (const std::int64_t before : tasks[i].after) {
        EXPECT_LT(before, static_cast<std::int64_t>(i));
      }
      EXPECT_GT(tasks[i].value, 0);
      if (tasks[i].kind == 's') {
        EXPECT_TRUE(sent.emplace(std::tuple(rank, tasks[i].peer, tasks[i].tag), tasks[i].value).second);
        bytes += tasks[i].value;
        ++messages;
      } else if (tasks[i].kind == 'r') {
        EXPECT_TRUE(received.emplace(std::tuple(tasks[i].peer, rank, tasks[i].tag), tasks[i].value).second);
      }
    }
  }
  EXPECT_EQ(sent, received);
  EXPECT_EQ(bytes, model.bytes);
  EXPECT_EQ(messages, model.messages);
}

TEST(RankGraph, GoalReadsBackWithEveryMessageOfThePlan) {
  for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
    for (const std::int64_t chunks : {1, 3}) {
      const RanksModel model = model_of(exchange, 8, chunks);
      expect_whole(parse_goal(goal_text(rank_graph(model))), model);
    }
  }
  const RanksModel serial = model_of(Exchange::kGather, 16, 1, false);
  expect_whole(parse_goal(goal_text(rank_graph(serial))), serial);
}

TEST(RankGraph, ChakraReadsBackWithEveryMessageOfThePlan) {
  for (const Exchange exchange : {Exchange::kGather, Exchange::kDispatch}) {
    const RanksModel model = model_of(exchange, 8, 2);
    const RankGraph graph = rank_graph(model);
    ReadGraph read;
    for (std::int64_t rank = 0; rank < 8; ++rank) {
      read.push_back(parse_chakra(chakra_json(graph, rank), rank));
    }
    expect_whole(read, model);
  }
}

TEST(RankGraph, BothFormsSayTheSame) {
  const RankGraph graph = rank_graph(model_of(Exchange::kGather, 4, 2));
  const ReadGraph goal = parse_goal(goal_text(graph));
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    const auto chakra = parse_chakra(chakra_json(graph, rank), rank);
    const auto& own = goal[static_cast<std::size_t>(rank)];
    ASSERT_EQ(chakra.size(), own.size());
    for (std::size_t i = 0; i < own.size(); ++i) {
      EXPECT_EQ(chakra[i].kind, own[i].kind);
      EXPECT_EQ(chakra[i].after, own[i].after);
      if (own[i].kind == 'c') {
        EXPECT_NEAR(static_cast<double>(chakra[i].value) * 1e3, static_cast<double>(own[i].value), 1e3);
      }
    }
  }
}

/// Whether task `later` waits for `earlier`, however far.
bool waits(const std::vector<RankTask>& tasks, std::int64_t later, std::int64_t earlier) {
  for (const std::int64_t before : tasks[static_cast<std::size_t>(later)].after) {
    if (before == earlier || waits(tasks, before, earlier)) {
      return true;
    }
  }
  return false;
}

std::int64_t find(const std::vector<RankTask>& tasks, const std::string& start) {
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (tasks[i].name.starts_with(start)) {
      return static_cast<std::int64_t>(i);
    }
  }
  ADD_FAILURE() << start;
  return 0;
}

TEST(RankGraph, DependenciesAreThoseOfTheTimeline) {
  const auto gather = rank_graph(model_of(Exchange::kGather, 4, 2)).ranks.front();
  const std::int64_t router = find(gather, "router");
  EXPECT_FALSE(waits(gather, find(gather, "rows chunk 0 to"), router)) << "rows travel behind the router";
  EXPECT_TRUE(waits(gather, find(gather, "pairs to"), router));
  EXPECT_TRUE(waits(gather, find(gather, "experts chunk 0"), find(gather, "pairs from")));
  EXPECT_TRUE(waits(gather, find(gather, "experts chunk 1"), find(gather, "experts chunk 0")));
  EXPECT_FALSE(waits(gather, find(gather, "experts chunk 0"), find(gather, "rows chunk 1 from")));
  EXPECT_FALSE(waits(gather, find(gather, "shared_mlp"), find(gather, "returns chunk 1 from")));
  EXPECT_TRUE(waits(gather, find(gather, "add"), find(gather, "returns chunk 1 from")));
  const auto serial = rank_graph(model_of(Exchange::kGather, 4, 1, false)).ranks.front();
  EXPECT_TRUE(waits(serial, find(serial, "rows chunk 0 to"), find(serial, "router")));
  EXPECT_TRUE(waits(serial, find(serial, "shared_mlp"), find(serial, "returns chunk 0 from")));
  const auto dispatch = rank_graph(model_of(Exchange::kDispatch, 4, 2)).ranks.front();
  EXPECT_TRUE(waits(dispatch, find(dispatch, "rows chunk 0 to"), find(dispatch, "router")));
}

TEST(RankGraph, OneRankIsOneCalculation) {
  const RanksModel model = model_of(Exchange::kGather, 1, 1);
  const ReadGraph goal = parse_goal(goal_text(rank_graph(model)));
  ASSERT_EQ(goal.size(), 1U);
  ASSERT_EQ(goal.front().size(), 1U);
  EXPECT_NEAR(static_cast<double>(goal.front().front().value), model.layer_s * 1e9, 1);
}

}  // namespace
}  // namespace moescope
