// Traces of several layers: what `moescope import` writes, what NumPy writes, and "#layer=".
#include "core/workload/trace_file.hpp"

#include <gtest/gtest.h>

#include <limits>

#include "core/files/npy.hpp"
#include "core/files/regular_file.hpp"
#include "core/results/experiment.hpp"
#include "core/workload/layered_trace.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

using test::bytes_of;
using test::contains;
using test::message_of;
using test::npy;
using test::zip;

LayeredTrace small_trace() {
  LayeredTrace trace;
  trace.system = "omnimoe";
  trace.num_experts = 6;
  trace.grid_rows = 2;
  trace.grid_cols = 3;
  trace.layers = {2, 5};
  trace.num_tokens = 2;
  trace.top_k = 2;
  trace.expert_ids = {5, 1, 0, 3, 2, 4, 4, 0};
  trace.gates = {0.25F, 0.75F, 1, 2, 3, 4, 5, 6};
  trace.source = "a test, in \xC3\xA4 language";
  return trace;
}

LayerShape flat_shape() {
  LayerShape shape;
  shape.num_tokens = shape.grid_rows = shape.grid_cols = shape.top_k = 0;
  shape.hidden_size = 8;
  shape.dtype = Dtype::kF32;
  return shape;
}

TEST(LayeredTrace, IsReplayedLayerByLayer) {
  const test::TempFolder folder;
  const std::string path = folder.path("t.npz").string();
  write_layered_trace(small_trace(), path);
  EXPECT_EQ(folder.file_count(), 1U);
  const LayerInputs second =
      make_workload(WorkloadSpec::parse("trace:" + path + "#layer=5"), flat_shape(), 1);
  EXPECT_EQ(second.shape.label(), "L2_d8_N2x3_K2");
  EXPECT_EQ(second.fixed_routing->expert_ids, (std::vector<std::int32_t>{2, 4, 0, 4}));
  EXPECT_EQ(second.fixed_routing->gates, (std::vector<float>{3, 4, 6, 5}));
  const ArrayFile file = read_array_file(path);
  EXPECT_EQ(file.arrays.at("expert_ids").dtype, "u8");
  EXPECT_EQ(file.get(path, "source").to_text(path, "source"), "a test, in \xC3\xA4 language");
  const TraceInfo info = trace_info(file, path);
  EXPECT_EQ(info.system, "omnimoe");
  EXPECT_EQ(info.layers, (std::vector<std::int64_t>{2, 5}));
  EXPECT_EQ(trace_routing(file, path, 2).expert_ids, (std::vector<std::int32_t>{1, 5, 0, 3}));
  const std::string again = folder.path("u.npz").string();
  write_layered_trace(small_trace(), again);
  EXPECT_EQ(read_text(again, 1 << 20), read_text(path, 1 << 20));  // the same bytes
}

TEST(LayeredTrace, TakesTheNarrowestTypeOfIds) {
  const test::TempFolder folder;
  for (const auto& [experts, dtype] :
       {std::pair<std::int64_t, const char*>{256, "u8"}, {257, "u16"}, {65537, "i32"}}) {
    LayeredTrace trace = small_trace();
    trace.grid_rows = trace.grid_cols = 0;
    trace.num_experts = experts;
    trace.expert_ids[0] = static_cast<std::int32_t>(experts) - 1;
    const std::string path = folder.path("t.npz").string();
    write_layered_trace(trace, path);
    const ArrayFile file = read_array_file(path);
    EXPECT_EQ(file.arrays.at("expert_ids").dtype, dtype);
    const Routing routing = trace_routing(file, path, 2);
    EXPECT_EQ(routing.grid_rows, 1);  // a flat router
    EXPECT_EQ(routing.ids_of(0)[1], experts - 1);
  }
}

TEST(LayeredTrace, OfNumPyWithATextIsTheSame) {
  const std::string path = test::source_path("tests/data/import/trace.npz");
  const ArrayFile file = read_array_file(path);
  const TraceInfo info = trace_info(file, path);
  EXPECT_EQ(info.system, "gshard");
  EXPECT_EQ(info.num_experts, 8);
  EXPECT_EQ(info.layers, (std::vector<std::int64_t>{1, 3}));
  EXPECT_EQ(info.num_tokens, 16);
  EXPECT_TRUE(info.has_gates);
  EXPECT_EQ(trace_routing(file, path, 3).num_pairs(), 48);
  EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { trace_routing(file, path, 3, 3, 3); }),
                       {"grid = 3x3: ", "is of 8 experts"}));
}

TEST(LayeredTrace, NamesTheLayersThatThereAre) {
  const test::TempFolder folder;
  const std::string path = folder.path("t.npz").string();
  write_layered_trace(small_trace(), path);
  const auto error = [&](const std::string& behind) {
    return message_of<InvalidArgument>(
        [&] { complete_shape(WorkloadSpec::parse("trace:" + path + behind), flat_shape()); });
  };
  EXPECT_TRUE(contains(error(""), {"layer = none: ", "holds layers 2, 5", "#layer=2", "#layer=all"}));
  EXPECT_TRUE(contains(error("#layer=3"), {"layer = 3: ", "holds 2, 5"}));
  EXPECT_TRUE(contains(error("#layer=all"), {"stands for every layer"}));
}

TEST(LayeredTrace, RefusesThreeAxesThatNothingExplains) {
  const test::TempFolder folder;
  const std::string ids = npy("<i4", "(2, 1, 1)", bytes_of<std::int32_t>({0, 1}));
  const std::string bare = folder.write("b.npz", zip({{"expert_ids.npy", ids}}));
  EXPECT_TRUE(contains(message_of<FileError>([&] { trace_info(read_array_file(bare), bare); }),
                       {"shape [2, 1, 1]: without an array 'layers'", "moescope import"}));
  const auto with_layers = [&](const std::string& layers) {
    const std::string file = folder.write("l.npz", zip({{"expert_ids.npy", ids}, {"layers.npy", layers}}));
    return message_of<FileError>([&] { trace_info(read_array_file(file), file); });
  };
  EXPECT_TRUE(contains(with_layers(npy("<i8", "(2,)", bytes_of<std::int64_t>({1, 1}))),
                       {"layers[1]: 1: stands there twice"}));
  EXPECT_TRUE(contains(with_layers(npy("<i8", "(2,)", bytes_of<std::int64_t>({1, -1}))), {"layers[1]: -1"}));
  EXPECT_TRUE(contains(with_layers(npy("<i8", "(1,)", bytes_of<std::int64_t>({1}))),
                       {"layers: shape [1]: must be [2]"}));
}

TEST(LayeredTrace, RefusesWhatDoesNotFitBeforeItWrites) {
  const test::TempFolder folder;
  const auto error = [&](const auto& change) {
    LayeredTrace trace = small_trace();
    change(trace);
    return message_of<FileError>([&] { write_layered_trace(trace, folder.path("t.npz")); });
  };
  EXPECT_TRUE(contains(error([](LayeredTrace& t) { t.expert_ids[3] = 6; }),
                       {"expert_ids[layer 2, token 1, position 1]: 6: must be in [0, 6)"}));
  EXPECT_TRUE(contains(error([](LayeredTrace& t) { t.expert_ids[7] = 4; }),
                       {"expert_ids[layer 5, token 1, position 1]: 4: stands there twice"}));
  EXPECT_TRUE(contains(error([](LayeredTrace& t) { t.gates[4] = std::numeric_limits<float>::infinity(); }),
                       {"gates[layer 5, token 0, position 0]: inf"}));
  EXPECT_TRUE(contains(error([](LayeredTrace& t) { t.gates.pop_back(); }), {"8 ids and 7 gates"}));
  EXPECT_TRUE(contains(error([](LayeredTrace& t) { t.layers = {2, 2}; }), {"layers: 2: stands there twice"}));
  EXPECT_TRUE(
      contains(error([](LayeredTrace& t) { t.num_tokens = std::int64_t{1} << 30; }), {"do not fill"}));
  EXPECT_TRUE(
      contains(message_of<InvalidArgument>([&] { write_layered_trace(small_trace(), folder.path("t.npy")); }),
               {"must end in .npz"}));
  EXPECT_EQ(folder.file_count(), 0U);
}

TEST(WorkloadSpecLayer, StandsBehindTheFile) {
  const WorkloadSpec spec = WorkloadSpec::parse("trace:a#b.npz#layer=12");
  EXPECT_EQ(spec.path, "a#b.npz");
  EXPECT_EQ(spec.layer, 12);
  EXPECT_EQ(spec.text, "trace:a#b.npz#layer=12");
  EXPECT_TRUE(WorkloadSpec::parse("trace:t.npz#layer=all").all_layers);
  EXPECT_EQ(WorkloadSpec::parse("trace:a#b.npz").path, "a#b.npz");
  for (const char* bad : {"trace:t#layer=", "trace:t#layer=-1", "trace:t#layer=x", "trace:t#layer=01",
                          "trace:t#lair=1", "snapshot:t#layer=1"}) {
    EXPECT_TRUE(contains(message_of<InvalidArgument>([&] { WorkloadSpec::parse(bad); }), {"workload = "}))
        << bad;
  }
}

TEST(ExpandTraceLayers, GivesOneWorkloadALayerToExperimentsToo) {
  const test::TempFolder folder;
  const std::string path = folder.path("t.npz").string();
  write_layered_trace(small_trace(), path);
  EXPECT_EQ(expand_trace_layers("trace:" + path + "#layer=all"),
            (std::vector<std::string>{"trace:" + path + "#layer=2", "trace:" + path + "#layer=5"}));
  EXPECT_EQ(expand_trace_layers("zipf:1"), (std::vector<std::string>{"zipf:1"}));
  const Experiment experiment = parse_experiment(
      fmt::format(R"({{"name": "x", "workloads": ["zipf:1", "trace:{}#layer=all"]}})", path), "file");
  ASSERT_EQ(experiment.points.size(), 3U);
  EXPECT_EQ(experiment.points[2].workload, "trace:" + path + "#layer=5");
  EXPECT_TRUE(contains(message_of<FileError>([&] {
                         parse_experiment(R"({"name": "x", "workloads": ["trace:absent.npz#layer=all"]})",
                                          "file");
                       }),
                       {"absent.npz", "no such file"}));
}

}  // namespace
}  // namespace moescope
