// Workloads that come from files: snapshots of trained layers and recorded routing.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <optional>

#include "core/files/npy.hpp"
#include "core/workload/trace_writer.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::bytes_of;
using test::contains;
using test::npy;
using test::zip;

constexpr std::int64_t kTokens = 5;
constexpr std::int64_t kHidden = 8;
constexpr std::int64_t kRows = 3;
constexpr std::int64_t kCols = 4;
constexpr std::int64_t kShared = 6;

/// Small exact values, different for each tensor and element.
std::vector<float> values(std::int64_t count, float base) {
  std::vector<float> result(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < result.size(); ++i) {
    result[i] = base + 0.125F * static_cast<float>(i % 7);
  }
  return result;
}

/// `message` with every `path` replaced by `name`.
std::string shorten(const std::string& message, const std::string& path, const std::string& name) {
  const auto at = message.find(path);
  return at == std::string::npos
             ? message
             : message.substr(0, at) + name + shorten(message.substr(at + path.size()), path, name);
}

struct TestArray {
  std::vector<std::int64_t> shape;
  std::vector<float> data;
};

/// A whole layer; tests change one thing before it is written.
struct TestSnapshot {
  std::map<std::string, std::string> metadata = {{"top_k", "2"}, {"grid_rows", "3"}, {"grid_cols", "4"}};
  std::map<std::string, TestArray> arrays;

  TestSnapshot() {
    add("hidden_states", {kTokens, kHidden}, 1);
    add("router.row.weight", {kRows, kHidden}, 2);
    add("router.col.weight", {kCols, kHidden}, 3);
    add("router.row.bias", {kRows}, 4);
    add("router.col.bias", {kCols}, 5);
    add("experts.w_in", {kRows * kCols, kHidden}, 6);
    add("experts.w_out", {kRows * kCols, kHidden}, 7);
    add("shared.gate.weight", {kShared, kHidden}, 8);
    add("shared.up.weight", {kShared, kHidden}, 9);
    add("shared.down.weight", {kHidden, kShared}, 10);
  }

  void add(const std::string& name, std::vector<std::int64_t> shape, float base) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    arrays[name] = {std::move(shape), values(count, base)};
  }
  void remove(std::initializer_list<const char*> names) {
    for (const char* name : names) arrays.erase(name);
  }

  std::string file() const {
    std::string header = "{\"__metadata__\":{";
    for (const auto& [key, text] : metadata) {
      header += fmt::format("{}\"{}\":\"{}\"", header.back() == '{' ? "" : ",", key, text);
    }
    header += "}";
    std::string data;
    for (const auto& [name, array] : arrays) {
      std::string shape;
      for (const std::int64_t extent : array.shape)
        shape += fmt::format("{}{}", shape.empty() ? "" : ",", extent);
      header += fmt::format(R"(,"{}":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}})", name, shape,
                            data.size(), data.size() + array.data.size() * sizeof(float));
      data += bytes_of(array.data);
    }
    return test::safetensors(header + "}", data);
  }
};

LayerShape from_file(Dtype dtype = Dtype::kF32) {
  LayerShape shape;
  shape.num_tokens = shape.hidden_size = shape.grid_rows = shape.grid_cols = shape.top_k = shape.shared_size =
      0;
  shape.dtype = dtype;
  return shape;
}

class SnapshotFile : public testing::Test {
 protected:
  WorkloadSpec write(const TestSnapshot& snapshot) const {
    return WorkloadSpec::parse("snapshot:" + folder_.write("s.safetensors", snapshot.file()));
  }
  /// Message without the folder's name.
  template <class E>
  std::string error_of(const TestSnapshot& snapshot, const LayerShape& shape = from_file()) const {
    const WorkloadSpec spec = write(snapshot);
    return shorten(test::message_of<E>([&] { make_workload(spec, shape, 1); }), spec.path, "s");
  }
  std::string changed(const std::function<void(TestSnapshot&)>& change) const {
    TestSnapshot snapshot;
    change(snapshot);
    return error_of<FileError>(snapshot);
  }

  test::TempFolder folder_;
};

TEST_F(SnapshotFile, GivesTheWholeLayer) {
  const WorkloadSpec spec = write(TestSnapshot{});
  const LayerInputs inputs = make_workload(spec, from_file(), 1);
  EXPECT_EQ(inputs.shape.label(), "L5_d8_N3x4_K2");
  EXPECT_EQ(inputs.shape.shared_size, kShared);
  EXPECT_EQ(inputs.workload, spec.text);
  EXPECT_FALSE(inputs.fixed_routing.has_value());
  EXPECT_EQ(inputs.hidden_states.at(1, 0), values(kTokens * kHidden, 1)[8]);
  EXPECT_EQ(inputs.router.row.at(2, 7), values(kRows * kHidden, 2)[23]);
  EXPECT_EQ(inputs.router.col.at(3, 1), values(kCols * kHidden, 3)[25]);
  EXPECT_EQ(inputs.router.row_bias, values(kRows, 4));
  EXPECT_EQ(inputs.router.col_bias, values(kCols, 5));
  EXPECT_EQ(inputs.experts->w_in.at(11, 3), values(kRows * kCols * kHidden, 6)[91]);
  EXPECT_EQ(inputs.experts->w_out.at(11, 3), values(kRows * kCols * kHidden, 7)[91]);
  EXPECT_EQ(inputs.experts->shared->gate.at(5, 7), values(kShared * kHidden, 8)[47]);
  EXPECT_EQ(inputs.experts->shared->up.at(5, 7), values(kShared * kHidden, 9)[47]);
  EXPECT_EQ(inputs.experts->shared->down.at(7, 5), values(kShared * kHidden, 10)[47]);
}

TEST_F(SnapshotFile, TakesTheFirstTokensAndAnyTopK) {
  LayerShape shape = from_file(Dtype::kBF16);
  shape.num_tokens = 2;
  shape.top_k = kRows * kCols;
  const LayerInputs inputs = make_workload(write(TestSnapshot{}), shape, 1);
  EXPECT_EQ(inputs.hidden_states.rows(), 2);
  EXPECT_EQ(inputs.hidden_states.dtype(), Dtype::kBF16);
  EXPECT_EQ(inputs.hidden_states.at(1, 7), values(kTokens * kHidden, 1)[15]);
  EXPECT_EQ(inputs.shape.top_k, 12);
}

TEST_F(SnapshotFile, RefusesARequestThatDoesNotFitNamingBothValues) {
  const auto refused = [&](auto member, std::int64_t value) {
    LayerShape shape = from_file();
    shape.*member = value;
    return error_of<InvalidArgument>(TestSnapshot{}, shape);
  };
  EXPECT_EQ(refused(&LayerShape::num_tokens, 6), "num_tokens = 6: s has no more than 5");
  EXPECT_EQ(refused(&LayerShape::num_tokens, -1), "num_tokens = -1: must be at least 1");
  EXPECT_EQ(refused(&LayerShape::hidden_size, 16), "hidden_size = 16: s has 8");
  EXPECT_EQ(refused(&LayerShape::grid_rows, 4), "grid_rows = 4: s has 3");
  EXPECT_EQ(refused(&LayerShape::grid_cols, 3), "grid_cols = 3: s has 4");
  EXPECT_EQ(refused(&LayerShape::shared_size, 7), "shared_size = 7: s has 6");
  EXPECT_EQ(refused(&LayerShape::top_k, 13), "top_k = 13: must not exceed num_experts = 12 (3 x 4)");
}

TEST_F(SnapshotFile, RefusesOptionsOtherThanTheRecordedOnes) {
  TestSnapshot snapshot;
  snapshot.metadata["activation"] = "relu";
  snapshot.metadata["gates"] = "probability exp(S)";
  LayerShape shape = from_file();
  EXPECT_EQ(error_of<InvalidArgument>(snapshot, shape), "activation = silu: s was recorded with relu");
  shape.activation = Activation::kRelu;
  EXPECT_EQ(error_of<InvalidArgument>(snapshot, shape),
            "gate_mode = softmax: s was recorded with probability");
  shape.gate_mode = GateMode::kProbability;
  EXPECT_EQ(make_workload(write(snapshot), shape, 1).shape.activation, Activation::kRelu);
  EXPECT_TRUE(contains(changed([](auto& s) { s.metadata["activation"] = "tanh"; }),
                       {"s: __metadata__.activation: ", "tanh"}));
  EXPECT_TRUE(
      contains(changed([](auto& s) { s.metadata["gates"] = "top"; }), {"s: __metadata__.gates: ", "top"}));
}

TEST_F(SnapshotFile, ChecksEveryExtentAgainstTheOthers) {
  const auto reshaped = [&](const std::string& name, std::vector<std::int64_t> shape) {
    return changed([&](TestSnapshot& s) { s.add(name, shape, 1); });
  };
  EXPECT_EQ(reshaped("hidden_states", {40}),
            "s: hidden_states: shape [40]: must be [num_tokens, hidden_size], each at least 1");
  EXPECT_EQ(reshaped("hidden_states", {0, 8}),
            "s: hidden_states: shape [0, 8]: must be [num_tokens, hidden_size], each at least 1");
  EXPECT_EQ(reshaped("router.row.weight", {4, 8}),
            "s: router.row.weight: shape [4, 8]: must be [3, 8] (grid_rows x hidden_size)");
  EXPECT_EQ(reshaped("router.col.weight", {4, 7}),
            "s: router.col.weight: shape [4, 7]: must be [4, 8] (grid_cols x hidden_size)");
  EXPECT_EQ(reshaped("router.row.bias", {4}), "s: router.row.bias: shape [4]: must be [3] (grid_rows)");
  EXPECT_EQ(reshaped("router.col.bias", {1, 4}), "s: router.col.bias: shape [1, 4]: must be [4] (grid_cols)");
  EXPECT_EQ(reshaped("experts.w_in", {11, 8}),
            "s: experts.w_in: shape [11, 8]: must be [12, 8] (grid_rows * grid_cols x hidden_size)");
  EXPECT_EQ(reshaped("experts.w_out", {12, 4}),
            "s: experts.w_out: shape [12, 4]: must be [12, 8] (grid_rows * grid_cols x hidden_size)");
  EXPECT_EQ(reshaped("shared.gate.weight", {6, 9}),
            "s: shared.gate.weight: shape [6, 9]: must be [6, 8] (shared_size x hidden_size)");
  EXPECT_EQ(reshaped("shared.up.weight", {5, 8}),
            "s: shared.up.weight: shape [5, 8]: must be [6, 8] (shared_size x hidden_size)");
  EXPECT_EQ(reshaped("shared.down.weight", {6, 8}),
            "s: shared.down.weight: shape [6, 8]: must be [8, 6] (hidden_size x shared_size)");
}

TEST_F(SnapshotFile, RefusesMissingPartsAndBadMetadata) {
  EXPECT_EQ(changed([](auto& s) { s.remove({"hidden_states"}); }), "s: hidden_states: missing");
  EXPECT_EQ(changed([](auto& s) { s.remove({"router.col.weight"}); }), "s: router.col.weight: missing");
  EXPECT_EQ(changed([](auto& s) { s.remove({"router.row.bias"}); }), "s: router.row.bias: missing");
  EXPECT_EQ(changed([](auto& s) { s.remove({"experts.w_out"}); }), "s: experts.w_out: missing");
  EXPECT_EQ(changed([](auto& s) { s.remove({"shared.up.weight"}); }), "s: shared.up.weight: missing");
  EXPECT_EQ(changed([](auto& s) { s.metadata.erase("grid_rows"); }), "s: __metadata__.grid_rows: missing");
  for (const std::string text : {"", "0", "-3", "3.0", "3 ", "0x3", "2147483648", "99999999999999999999"}) {
    EXPECT_EQ(changed([&](auto& s) { s.metadata["grid_rows"] = text; }),
              fmt::format("s: __metadata__.grid_rows: '{}': must be a number in [1, 2^31)", text));
  }
  EXPECT_EQ(changed([](auto& s) { s.metadata["top_k"] = "13"; }),
            "s: __metadata__.top_k: 13: must not exceed grid_rows * grid_cols = 12");
}

TEST_F(SnapshotFile, RefusesNonFiniteValuesWithTheirCoordinate) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto spoiled = [&](const std::string& name, std::size_t index, float value) {
    return changed([&](TestSnapshot& s) { s.arrays.at(name).data[index] = value; });
  };
  EXPECT_EQ(spoiled("hidden_states", 17, nan), "s: hidden_states[2, 1]: nan as fp32: must be finite");
  EXPECT_EQ(spoiled("router.row.weight", 23, infinity),
            "s: router.row.weight[2, 7]: inf as fp32: must be finite");
  EXPECT_EQ(spoiled("router.col.weight", 0, -infinity),
            "s: router.col.weight[0, 0]: -inf as fp32: must be finite");
  EXPECT_EQ(spoiled("router.row.bias", 1, nan), "s: router.row.bias[1]: nan as fp32: must be finite");
  EXPECT_EQ(spoiled("experts.w_in", 9, nan), "s: experts.w_in[1, 1]: nan as fp32: must be finite");
  EXPECT_EQ(spoiled("shared.down.weight", 6, nan),
            "s: shared.down.weight[1, 0]: nan as fp32: must be finite");
  TestSnapshot large;  // finite as recorded, not in storage
  large.arrays.at("hidden_states").data[0] = std::numeric_limits<float>::max();
  EXPECT_EQ(error_of<FileError>(large, from_file(Dtype::kBF16)),
            "s: hidden_states[0, 0]: inf as bf16: must be finite");
}

TEST_F(SnapshotFile, MakesUpTheWeightsItDoesNotHold) {
  TestSnapshot snapshot;
  snapshot.remove({"experts.w_in", "experts.w_out", "shared.gate.weight", "shared.up.weight",
                   "shared.down.weight", "router.row.bias", "router.col.bias"});
  LayerShape shape = from_file();
  shape.shared_size = 5;
  const LayerInputs inputs = make_workload(write(snapshot), shape, 7);
  const auto made = make_expert_weights(inputs.shape, 7);
  EXPECT_EQ(inputs.shape.shared_size, 5);
  EXPECT_TRUE(inputs.router.row_bias.empty());
  EXPECT_EQ(inputs.experts->w_in.at(3, 3), made->w_in.at(3, 3));
  EXPECT_EQ(inputs.experts->shared->down.at(3, 3), made->shared->down.at(3, 3));

  TestSnapshot shared_only;
  shared_only.remove({"experts.w_in", "experts.w_out"});
  const LayerInputs mixed = make_workload(write(shared_only), from_file(), 7);
  EXPECT_EQ(mixed.experts->w_out.at(3, 3), made->w_out.at(3, 3));
  EXPECT_EQ(mixed.experts->shared->gate.at(0, 0), 8);

  TestSnapshot routed_only;
  routed_only.remove({"shared.gate.weight", "shared.up.weight", "shared.down.weight"});
  EXPECT_EQ(make_workload(write(routed_only), from_file(), 7).experts->shared, std::nullopt);
  EXPECT_EQ(error_of<InvalidArgument>(routed_only, shape), "shared_size = 5: s has 0");
}

TEST_F(SnapshotFile, UsesTheExpertsItIsGiven) {
  const WorkloadSpec spec = write(TestSnapshot{});
  LayerShape shape = complete_shape(spec, from_file());
  shape.shared_size = 0;
  const auto experts = make_expert_weights(shape, 3);
  const LayerInputs inputs = make_workload(spec, shape, 1, experts);
  EXPECT_EQ(inputs.experts, experts);
  EXPECT_EQ(inputs.shape.shared_size, 0);
  shape.grid_rows = 2;
  EXPECT_TRUE(contains(test::message_of<InvalidArgument>(
                           [&] { make_workload(spec, from_file(), 1, make_expert_weights(shape, 3)); }),
                       {"experts.w_in", "[8, 8]", "[12, 8]"}));
}

TEST_F(SnapshotFile, ReadsTheRecordedLayer) {
  const auto spec = WorkloadSpec::parse("snapshot:" + test::source_path("data/small_layer2.safetensors"));
  const LayerInputs inputs = make_workload(spec, from_file(Dtype::kBF16), 1);
  EXPECT_EQ(inputs.shape.label(), "L8192_d256_N4096_K32");
  EXPECT_EQ(inputs.shape.shared_size, 256);
  EXPECT_EQ(inputs.experts->w_in.rows(), 4096);
}

TEST_F(SnapshotFile, RefusesAFileThatIsMissing) {
  const auto spec = WorkloadSpec::parse("snapshot:" + folder_.path("none.safetensors").string());
  EXPECT_TRUE(contains(test::message_of<FileError>([&] { complete_shape(spec, from_file()); }),
                       {"none.safetensors: no such file"}));
}

LayerShape trace_shape(std::int64_t grid_rows = 3, std::int64_t grid_cols = 4) {
  LayerShape shape = from_file();
  shape.hidden_size = kHidden;
  shape.grid_rows = grid_rows;
  shape.grid_cols = grid_cols;
  return shape;
}

class TraceFile : public testing::Test {
 protected:
  WorkloadSpec write(const std::string& name, const std::string& content) const {
    return WorkloadSpec::parse("trace:" + folder_.write(name, content));
  }
  WorkloadSpec npy_ids(const std::vector<std::int32_t>& ids, const std::string& shape) const {
    return write("ids.npy", npy("<i4", shape, bytes_of(ids)));
  }
  WorkloadSpec npz(const std::vector<std::int32_t>& ids, const std::vector<float>& gates,
                   const std::string& shape) const {
    return write("t.npz", zip({{"expert_ids.npy", npy("<i4", shape, bytes_of(ids))},
                               {"gates.npy", npy("<f4", shape, bytes_of(gates)), true}}));
  }
  template <class E>
  static std::string error_of(const WorkloadSpec& spec, const LayerShape& shape = trace_shape()) {
    return shorten(test::message_of<E>([&] { make_workload(spec, shape, 1); }), spec.path, "t");
  }

  test::TempFolder folder_;
};

TEST_F(TraceFile, SortsEachTokensPairsTogetherWithTheirGates) {
  const LayerInputs inputs =
      make_workload(npz({11, 0, 5, 1, 2, 3}, {0.5F, 0.25F, 0.125F, 1, 2, 3}, "(2, 3)"), trace_shape(), 1);
  const Routing& routing = *inputs.fixed_routing;
  EXPECT_EQ(inputs.shape.label(), "L2_d8_N3x4_K3");
  EXPECT_EQ(routing.token_offsets, (std::vector<std::int64_t>{0, 3, 6}));
  EXPECT_EQ(routing.expert_ids, (std::vector<std::int32_t>{0, 5, 11, 1, 2, 3}));
  EXPECT_EQ(routing.gates, (std::vector<float>{0.25F, 0.125F, 0.5F, 1, 2, 3}));
  EXPECT_EQ(routing.grid_cols, 4);
  EXPECT_TRUE(inputs.router.row.empty());
  EXPECT_EQ(inputs.experts->w_in.rows(), 12);
}

TEST_F(TraceFile, ReadsBareIdsOfAnyWidthWithEqualGates) {
  const LayerInputs narrow = make_workload(npy_ids({3, 1, 2, 0}, "(2, 2)"), trace_shape(), 1);
  EXPECT_EQ(narrow.fixed_routing->gates, (std::vector<float>{0.5F, 0.5F, 0.5F, 0.5F}));
  const LayerInputs wide = make_workload(
      write("w.npy", npy("<i8", "(2, 2)", bytes_of<std::int64_t>({3, 1, 2, 0}))), trace_shape(), 1);
  EXPECT_EQ(wide.fixed_routing->expert_ids, narrow.fixed_routing->expert_ids);
  const LayerInputs single = make_workload(npy_ids({0}, "(1, 1)"), trace_shape(1, 1), 1);
  EXPECT_EQ(single.fixed_routing->gates, (std::vector<float>{1}));
}

TEST_F(TraceFile, DrawsHiddenStatesThatDependOnTheSeedAlone) {
  const WorkloadSpec spec = npy_ids({3, 1, 2, 0}, "(2, 2)");
  LayerShape shape = trace_shape();
  shape.hidden_size = 4096;
  const LayerInputs one = make_workload(spec, shape, 1);
  const LayerInputs again = make_workload(spec, shape, 1);
  const LayerInputs other = make_workload(spec, shape, 2);
  double sum_of_squares = 0;
  for (std::int64_t i = 0; i < shape.hidden_size; ++i) {
    EXPECT_EQ(one.hidden_states.at(1, i), again.hidden_states.at(1, i));
    sum_of_squares += std::pow(one.hidden_states.at(1, i), 2);
  }
  EXPECT_NE(one.hidden_states.at(1, 0), other.hidden_states.at(1, 0));
  EXPECT_NEAR(sum_of_squares / 4096, 1,
              0.1);  // variance 1; standard error of the mean square sqrt(2/4096) = 0.02
}

TEST_F(TraceFile, TakesTheFirstTokensButNoOtherTopK) {
  const WorkloadSpec spec = npz({3, 1, 2, 0, 7, 99}, {1, 2, 3, 4, 5, 6}, "(3, 2)");
  LayerShape shape = trace_shape();
  shape.num_tokens = 2;
  shape.top_k = 2;
  EXPECT_EQ(make_workload(spec, shape, 1).fixed_routing->gates, (std::vector<float>{2, 1, 4, 3}));
  shape.top_k = 1;
  EXPECT_EQ(error_of<InvalidArgument>(spec, shape), "top_k = 1: t has 2");
  shape.top_k = 0;
  shape.num_tokens = 4;
  EXPECT_EQ(error_of<InvalidArgument>(spec, shape), "num_tokens = 4: t has no more than 3");
}

TEST_F(TraceFile, NamesTokenPositionAndIdOfWhatIsWrong) {
  EXPECT_EQ(error_of<FileError>(npy_ids({0, 1, 2, 7, 4, 7}, "(2, 3)")),
            "t: expert_ids[token 1, position 2]: 7: repeats position 0");
  EXPECT_EQ(error_of<FileError>(npy_ids({0, 1, 2, 7, 12, 8}, "(2, 3)")),
            "t: expert_ids[token 1, position 1]: 12: must be in [0, 12) for grid 3 x 4");
  EXPECT_EQ(error_of<FileError>(npy_ids({0, -1}, "(1, 2)")),
            "t: expert_ids[token 0, position 1]: -1: must be in [0, 12) for grid 3 x 4");
  EXPECT_EQ(error_of<FileError>(npz({0, 1, 2, 3}, {1, 1, 1, std::nanf("")}, "(2, 2)")),
            "t: gates[token 1, position 1]: nan: must be finite");
}

TEST_F(TraceFile, RefusesArraysThatAreNoTrace) {
  EXPECT_EQ(error_of<FileError>(npy_ids({0, 1}, "(2,)")),
            "t: expert_ids: shape [2]: must be [num_tokens, top_k], each at least 1");
  EXPECT_EQ(error_of<FileError>(npy_ids({}, "(0, 2)")),
            "t: expert_ids: shape [0, 2]: must be [num_tokens, top_k], each at least 1");
  EXPECT_EQ(error_of<FileError>(write("f.npy", npy("<f4", "(1, 1)", bytes_of<float>({0})))),
            "t: expert_ids: dtype f32: must be an integer type");
  EXPECT_EQ(error_of<FileError>(
                write("n.npz", zip({{"ids.npy", npy("<i4", "(1, 1)", bytes_of<std::int32_t>({0}))}}))),
            "t: expert_ids: missing");
  EXPECT_EQ(error_of<FileError>(
                write("g.npz", zip({{"expert_ids.npy", npy("<i4", "(1, 2)", bytes_of<std::int32_t>({0, 1}))},
                                    {"gates.npy", npy("<f4", "(2,)", bytes_of<float>({0, 1}))}}))),
            "t: gates: shape [2]: must be [1, 2] (that of expert_ids)");
}

TEST_F(TraceFile, NeedsAGridAndAHiddenSize) {
  const WorkloadSpec spec = npy_ids({3, 1}, "(1, 2)");
  LayerShape shape = trace_shape();
  shape.grid_cols = 0;
  EXPECT_EQ(error_of<InvalidArgument>(spec, shape), "grid_cols = 0: t does not record it: must be given");
  shape = trace_shape();
  shape.hidden_size = 0;
  EXPECT_EQ(error_of<InvalidArgument>(spec, shape), "hidden_size = 0: t holds routing alone: must be given");
  EXPECT_EQ(error_of<InvalidArgument>(spec, trace_shape(1, 1)),
            "top_k = 2: must not exceed num_experts = 1 (1 x 1)");
}

TEST(TraceWriter, RecordsWhatTheTraceWorkloadReplaysBitForBit) {
  const test::TempFolder folder;
  const std::string path = folder.path("t.safetensors").string();
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    LayerShape shape = trace_shape(6, 5);
    shape.num_tokens = 17;
    shape.top_k = 7;
    const Routing routing = test::make_routing({shape, test::RoutingSkew::kGaussian}, seed);
    write_trace(routing, path);
    EXPECT_EQ(folder.file_count(), 1U);  // no partial file is left
    const auto spec = WorkloadSpec::parse("trace:" + path);
    const LayerInputs replayed = make_workload(spec, trace_shape(0, 0), 1);
    EXPECT_EQ(replayed.shape.label(), "L17_d8_N6x5_K7");
    EXPECT_EQ(replayed.fixed_routing->token_offsets, routing.token_offsets);
    EXPECT_EQ(replayed.fixed_routing->expert_ids, routing.expert_ids);
    EXPECT_EQ(bytes_of(replayed.fixed_routing->gates), bytes_of(routing.gates));
    EXPECT_TRUE(contains(test::message_of<InvalidArgument>([&] { complete_shape(spec, trace_shape(5, 6)); }),
                         {"grid_rows = 5: ", " has 6"}));
  }
}

TEST(TraceWriter, RefusesWhatATraceCannotHoldAndWritesNothing) {
  const test::TempFolder folder;
  const Routing ragged{2, 1, 4, {0, 2, 3}, {0, 1, 2}, {1, 1, 1}};
  const auto error = [&](const Routing& routing, const std::string& name) {
    return test::message_of<InvalidArgument>([&] { write_trace(routing, folder.path(name)); });
  };
  EXPECT_EQ(error(ragged, "t.safetensors"),
            "routing, experts of token 1 = 1: a trace needs the same number for every token; token 0 has 2");
  EXPECT_EQ(error(Routing{0, 1, 1, {0}, {}, {}}, "t.safetensors"),
            "routing = 0 pairs: an empty routing cannot be recorded");
  EXPECT_TRUE(
      contains(error(Routing{1, 1, 4, {0, 2}, {1, 1}, {1, 1}}, "t.safetensors"), {"expert_ids", "repeats"}));
  EXPECT_TRUE(
      contains(error(Routing{1, 1, 4, {0, 1}, {1}, {1}}, "t.npz"), {"t.npz: must end in .safetensors"}));
  EXPECT_TRUE(contains(test::message_of<FileError>([&] {
                         write_trace(Routing{1, 1, 4, {0, 1}, {1}, {1}}, folder.path("no/t.safetensors"));
                       }),
                       {"no/t.safetensors: cannot be written"}));
  EXPECT_EQ(folder.file_count(), 0U);
}

}  // namespace
}  // namespace moescope
