// Traces and snapshots of the baselines: read back, run, and refused as what they are not.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/schedule/skew.hpp"
#include "core/systems/system_traits.hpp"
#include "core/systems/system_workload.hpp"
#include "core/workload/trace_writer.hpp"
#include "core/workload/workload.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/system_routing.hpp"
#include "tests/support/systems.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

WorkloadSpec spec_of(const std::string& text) { return WorkloadSpec::parse(text); }

/// With what only the file knows left open.
SystemShape open_shape(System system) {
  SystemShape shape = test::small_system(system, Dtype::kF32);
  shape.num_tokens = shape.num_experts = shape.top_k = 0;
  return shape;
}

void expect_correct(const SystemInputs& inputs) {
  ReferenceBackend backend;
  const SystemCheck check = check_system(backend, inputs, inputs.shape.num_tokens);
  EXPECT_TRUE(check.passed()) << inputs.workload << ": " << check.describe();
}

class SystemTraces : public testing::TestWithParam<System> {
 protected:
  /// The routing of a small layer under zipf:1, recorded as what it is.
  std::string record() {
    const SystemShape shape = test::small_system(GetParam(), Dtype::kF32);
    const SystemInputs inputs = make_workload(spec_of("zipf:1"), shape, 2);
    recorded_ = test::routing_of(inputs);
    const auto file = directory_.path() / "trace.safetensors";
    write_trace(recorded_, file, to_string(shape.system), shape.heads);
    return "trace:" + file.string();
  }

  test::TemporaryDirectory directory_;
  Routing recorded_;
};

TEST_P(SystemTraces, ReplayWhatWasRecordedAndAgreeWithTheOracle) {
  const std::string text = record();
  const SystemInputs inputs = make_workload(spec_of(text), open_shape(GetParam()), 4);
  EXPECT_EQ(inputs.shape.num_tokens, 37);
  EXPECT_EQ(inputs.shape.num_experts, 49);
  EXPECT_EQ(inputs.shape.top_k, 6);
  ASSERT_TRUE(inputs.fixed_routing.has_value());
  EXPECT_EQ(inputs.fixed_routing->expert_ids, recorded_.expert_ids);
  EXPECT_EQ(inputs.fixed_routing->gates, recorded_.gates);
  EXPECT_EQ(test::routing_of(inputs).expert_ids, recorded_.expert_ids);
  expect_correct(inputs);
  // The first tokens alone.
  SystemShape fewer = open_shape(GetParam());
  fewer.num_tokens = 5;
  const SystemInputs start = make_workload(spec_of(text), fewer, 4);
  EXPECT_EQ(start.fixed_routing->num_pairs(), 30);
  expect_correct(start);
}

TEST_P(SystemTraces, RunAsAnotherSystemOnlyWhenAskedFor) {
  const std::string text = record();
  const std::string name(to_string(GetParam()));
  const std::string path = text.substr(6);
  const System other = GetParam() == System::kGShard ? System::kDeepSeekMoe : System::kGShard;
  const auto refusal_of = [&](const std::string& workload, System system) {
    return test::error_text<InvalidArgument>(
        [&] { make_workload(spec_of(workload), open_shape(system), 1); });
  };
  EXPECT_EQ(refusal_of(text, other),
            fmt::format("system = {}: {} was recorded of {}; to run its routing as another system ask for "
                        "{}#as=any",
                        to_string(other), path, name, text));
  EXPECT_EQ(refusal_of(text + "#as=any", other), "(no error)");
  const SystemInputs inputs = make_workload(spec_of(text + "#as=any"), open_shape(other), 1);
  EXPECT_EQ(inputs.fixed_routing->expert_ids, recorded_.expert_ids);
  EXPECT_EQ(inputs.workload, text + "#as=any");
  expect_correct(inputs);

  LayerShape omnimoe;
  omnimoe.num_tokens = omnimoe.top_k = 0;
  omnimoe.hidden_size = 16;
  omnimoe.grid_rows = omnimoe.grid_cols = 7;
  const auto as_omnimoe = [&](const std::string& workload) {
    return test::error_text<InvalidArgument>([&] { make_workload(spec_of(workload), omnimoe, 1); });
  };
  EXPECT_TRUE(as_omnimoe(text).starts_with("system = omnimoe: " + path + " was recorded of " + name))
      << as_omnimoe(text);
  EXPECT_EQ(as_omnimoe(text + "#as=any"), "(no error)");
  omnimoe.grid_rows = 8;
  EXPECT_EQ(as_omnimoe(text + "#as=any"), fmt::format("num_experts = 56: {} has 49", path));
}

TEST_P(SystemTraces, ExtentsThatDoNotFitAreNamed) {
  const std::string text = record();
  SystemShape shape = open_shape(GetParam());
  const auto refusal = [&] {
    return test::error_text<InvalidArgument>([&] { complete_shape(spec_of(text), shape); });
  };
  shape.num_experts = 64;
  EXPECT_EQ(refusal(), fmt::format("num_experts = 64: {} has 49", text.substr(6)));
  shape.num_experts = 49;
  shape.top_k = 3;
  EXPECT_EQ(refusal(), fmt::format("top_k = 3: {} has 6", text.substr(6)));
  shape.top_k = 6;
  shape.num_tokens = 38;
  EXPECT_EQ(refusal(), fmt::format("num_tokens = 38: {} has no more than 37", text.substr(6)));
  if (shape.has_product_keys()) {
    shape.num_tokens = 0;
    shape.heads = 2;
    EXPECT_EQ(refusal(), fmt::format("heads = 2: {} has 3", text.substr(6)));
  }
}

INSTANTIATE_TEST_SUITE_P(Systems, SystemTraces,
                         testing::Values(System::kGShard, System::kDeepSeekMoe, System::kPkm, System::kPeer),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(SystemTrace, OfAnUnnamedSystemRunsAsWhateverIsAskedFor) {
  const test::TemporaryDirectory directory;
  const auto file = directory.path() / "ids.npy";
  test::write_text(file, test::npy("<i4", "(3, 2)", test::bytes_of<std::int32_t>({0, 3, 5, 1, 2, 4})));
  SystemShape shape = open_shape(System::kGShard);
  const std::string text = "trace:" + file.string();
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { complete_shape(spec_of(text), shape); }),
            fmt::format("num_experts = 0: {} does not record it: must be given", file.string()));
  shape.num_experts = 6;
  const SystemInputs inputs = make_workload(spec_of(text), shape, 1);
  EXPECT_EQ(inputs.fixed_routing->expert_ids, (std::vector<std::int32_t>{0, 3, 1, 5, 2, 4}));
  EXPECT_EQ(inputs.fixed_routing->gates, std::vector<float>(6, 0.5F));
  expect_correct(inputs);
  // dense_mlp has that many tokens.
  SystemShape dense = open_shape(System::kDenseMlp);
  EXPECT_EQ(complete_shape(spec_of(text), dense).num_tokens, 3);
}

// Counts by Python: tests/data/traces/README.md.
TEST(SystemTrace, OfATrainedModelIsReadFromAnNpzWithScalars) {
  const std::string text = "trace:" + test::source_path("tests/data/traces/ffn64_unbalanced.npz");
  const SystemInputs inputs = make_workload(spec_of(text), open_shape(System::kGShard), 1);
  EXPECT_EQ(inputs.shape.num_experts, 64);
  EXPECT_EQ(inputs.shape.num_tokens, 64);
  EXPECT_EQ(inputs.shape.top_k, 8);
  const auto ids = inputs.fixed_routing->ids_of(0);
  EXPECT_EQ(std::vector<std::int32_t>(ids.begin(), ids.end()),
            (std::vector<std::int32_t>{5, 17, 24, 28, 29, 49, 56, 58}));
  const SkewMetrics skew = compute_skew(*inputs.fixed_routing);
  EXPECT_EQ(skew.active_experts, 13);
  EXPECT_DOUBLE_EQ(skew.max_over_mean, 8);
  for (const ScheduleKind kind : traits_of(System::kGShard).schedules) {
    SystemInputs layer = make_workload(spec_of(text), open_shape(System::kGShard), 1);
    layer.schedule = kind;
    expect_correct(layer);
  }
  SystemShape other = open_shape(System::kGShard);
  other.num_experts = 32;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { complete_shape(spec_of(text), other); }),
            "num_experts = 32: " + text.substr(6) + " has 64");
}

/// A snapshot file of arrays in fp32, in the order given.
struct Array {
  std::string name;
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

std::string snapshot_bytes(const std::vector<Array>& arrays, const nlohmann::json& metadata) {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  std::string data;
  for (const Array& array : arrays) {
    const auto begin = data.size();
    data += test::bytes_of(array.values);
    header[array.name] = {{"dtype", "F32"}, {"shape", array.shape}, {"data_offsets", {begin, data.size()}}};
  }
  return test::safetensors(header.dump(), data);
}

Array array_of(const std::string& name, std::vector<std::int64_t> shape, const HostTensor& tensor) {
  const auto view = tensor.f32();
  return {name, std::move(shape), std::vector<float>(view.data, view.data + view.size())};
}

class SystemSnapshots : public testing::TestWithParam<System> {
 protected:
  SystemSnapshots() : layer_(make_workload(spec_of("zipf:1"), shape(), 9)) {}

  static SystemShape shape() { return test::system_shape(GetParam(), 11, 10, 8, 3); }

  std::vector<Array> arrays() const {
    const SystemWeights& weights = *layer_.weights;
    std::vector<Array> all = {array_of("hidden_states", {11, 10}, layer_.hidden_states),
                              array_of("router.weight", {8, 10}, weights.router),
                              array_of("experts.gate_up", {8, 24, 10}, weights.experts->gate_up),
                              array_of("experts.down", {8, 10, 12}, weights.experts->down)};
    if (weights.shared) {
      all.push_back(array_of("shared.gate.weight", {20, 10}, weights.shared->gate));
      all.push_back(array_of("shared.up.weight", {20, 10}, weights.shared->up));
      all.push_back(array_of("shared.down.weight", {10, 20}, weights.shared->down));
    }
    return all;
  }
  nlohmann::json metadata() const {
    return {{"system", to_string(GetParam())}, {"top_k", "3"}, {"activation", "silu"}};
  }
  std::string write(const std::vector<Array>& arrays, const nlohmann::json& metadata) {
    const auto file = directory_.path() / "layer.safetensors";
    test::write_text(file, snapshot_bytes(arrays, metadata));
    return "snapshot:" + file.string();
  }
  /// Nothing but the options is asked for.
  static SystemShape open() {
    SystemShape open = shape();
    open.num_tokens = open.hidden_size = open.num_experts = open.top_k = open.expert_size = 0;
    open.shared_size = 0;
    return open;
  }

  test::TemporaryDirectory directory_;
  SystemInputs layer_;
};

TEST_P(SystemSnapshots, AreTheLayerThatWasWritten) {
  const SystemInputs read = make_workload(spec_of(write(arrays(), metadata())), open(), 1);
  EXPECT_EQ(read.shape.label(), layer_.shape.label());
  EXPECT_EQ(read.shape.expert_size, 12);
  EXPECT_EQ(read.shape.shared_size, layer_.shape.shared_size);
  ReferenceBackend backend;
  const auto original = backend.prepare_system(layer_);
  const auto replayed = backend.prepare_system(read);
  original->run(L2State::kWarm);
  replayed->run(L2State::kWarm);
  EXPECT_EQ(original->routing().expert_ids, replayed->routing().expert_ids);
  const HostTensor a = original->output();
  const HostTensor b = replayed->output();
  EXPECT_EQ(std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())), 0);
  expect_correct(read);
}

TEST_P(SystemSnapshots, WithoutExpertsGetMadeUpOnes) {
  auto kept = arrays();
  kept.resize(2);
  SystemShape asked = open();
  asked.expert_size = 5;
  asked.shared_size = asked.has_dense_branch() ? 7 : 0;
  const SystemInputs read = make_workload(spec_of(write(kept, metadata())), asked, 1);
  EXPECT_EQ(read.weights->experts->down.rows(), 80);
  EXPECT_EQ(read.weights->experts->down.cols(), 5);
  expect_correct(read);
}

TEST_P(SystemSnapshots, WhatDoesNotFitIsNamed) {
  const auto refusal = [&](const std::string& text, const SystemShape& asked) {
    return test::error_text<Error>([&] { make_workload(spec_of(text), asked, 1); });
  };
  const std::string good = write(arrays(), metadata());
  SystemShape asked = open();
  asked.num_experts = 9;
  EXPECT_TRUE(refusal(good, asked).starts_with("num_experts = 9: ")) << refusal(good, asked);
  asked = open();
  asked.activation = Activation::kGelu;
  EXPECT_TRUE(refusal(good, asked).ends_with("was recorded with silu")) << refusal(good, asked);
  const System other = GetParam() == System::kGShard ? System::kDeepSeekMoe : System::kGShard;
  EXPECT_TRUE(refusal(good, test::system_shape(other, 11, 10, 8, 3))
                  .starts_with(fmt::format("system = {}: ", to_string(other))));
  EXPECT_TRUE(refusal(good, test::system_shape(System::kPeer, 11, 10, 9, 3))
                  .ends_with("no snapshot holds a layer of peer"));
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { complete_shape(spec_of(good), LayerShape{}); }),
            fmt::format("system = omnimoe: {} is a layer of {}", good.substr(9), to_string(GetParam())));

  auto broken = arrays();
  broken[3].shape = {8, 12, 10};
  EXPECT_NE(refusal(write(broken, metadata()), open()).find("experts.down"), std::string::npos);
  broken = arrays();
  broken[0].values[13] = std::numeric_limits<float>::infinity();
  EXPECT_NE(refusal(write(broken, metadata()), open()).find("hidden_states[1, 3]"), std::string::npos);
  broken = arrays();
  broken.erase(broken.begin() + 2);
  EXPECT_NE(refusal(write(broken, metadata()), open()).find("experts.gate_up"), std::string::npos);
  auto unnamed = metadata();
  unnamed.erase("top_k");
  EXPECT_NE(refusal(write(arrays(), unnamed), open()).find("top_k"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Ffn, SystemSnapshots, testing::Values(System::kGShard, System::kDeepSeekMoe),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(SystemSnapshot, OfOmniMoeIsNone) {
  SystemShape shape = test::system_shape(System::kGShard, 0, 0, 0, 0);
  const std::string path = test::source_path("data/small_layer2.safetensors");
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { complete_shape(spec_of("snapshot:" + path), shape); }),
            "system = gshard: " + path + " is a layer of omnimoe");
}

TEST(FileOptions, BehindTheFileAreKnownWords) {
  const WorkloadSpec spec = WorkloadSpec::parse("trace:a.npz#as=any");
  EXPECT_EQ(spec.path, "a.npz");
  EXPECT_TRUE(spec.any_system);
  EXPECT_EQ(spec.text, "trace:a.npz#as=any");
  EXPECT_EQ(test::error_text<InvalidArgument>([] { WorkloadSpec::parse("trace:a.npz#as=peer"); }),
            "workload = trace:a.npz#as=peer: 'as=peer' behind # must be as=any, layer=NUMBER or layer=all; "
            "expected trace:FILE");
}

}  // namespace
}  // namespace moescope
