// Layers of checkpoints, run on the CPU with their own weights, against NumPy's float64 output of the same
// layer (tests/data/import/make.py) and against the fp64 oracle.
#include "core/import/checkpoint.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "core/files/npy.hpp"
#include "core/systems/system.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

std::string data(const std::string& name) { return test::source_path("tests/data/import/" + name); }

SystemInputs inputs_of(const CheckpointLayer& layer, const FileArray& hidden, Dtype dtype) {
  const auto tensor = [&](const char* name) {
    return layer.arrays.at(name).to_tensor(dtype, "checkpoint", name);
  };
  SystemInputs inputs;
  inputs.shape = layer.config.layer;
  inputs.shape.num_tokens = hidden.shape[0];
  inputs.shape.dtype = dtype;
  inputs.hidden_states = hidden.to_tensor(dtype, "hidden", "hidden_states");
  auto weights = std::make_shared<SystemWeights>();
  weights->router = tensor("router.weight");
  weights->experts = FfnExpertWeights{tensor("experts.gate_up"), tensor("experts.down")};
  if (inputs.shape.shared_size > 0) {
    weights->shared = SharedMlpWeights{tensor("shared.gate.weight"), tensor("shared.up.weight"),
                                       tensor("shared.down.weight")};
  }
  inputs.weights = std::move(weights);
  inputs.validate();
  return inputs;
}

/// Frobenius norm of the difference over that of `theirs`.
double relative_distance(const HostTensor& ours, const std::vector<float>& theirs) {
  EXPECT_EQ(ours.size(), std::ssize(theirs));
  double difference = 0;
  double size = 0;
  for (std::int64_t i = 0; i < ours.size(); ++i) {
    const double wanted = theirs[static_cast<std::size_t>(i)];
    difference += std::pow(ours.at(i / ours.cols(), i % ours.cols()) - wanted, 2);
    size += wanted * wanted;
  }
  EXPECT_GT(size, 0.1);
  return std::sqrt(difference / size);
}

class CheckpointLayerOutput : public testing::TestWithParam<const char*> {};

TEST_P(CheckpointLayerOutput, EqualsNumPysInDoublePrecision) {
  const std::string folder = data(GetParam());
  const CheckpointLayer layer = read_checkpoint_layer(folder, 1, {});
  const ArrayFile hidden = read_safetensors(folder + "/hidden.safetensors");
  const ArrayFile expected = read_array_file(folder + "/expected.npz");
  const std::vector<float> y = expected.get(folder, "y").to_floats(folder, "y");
  const std::vector<std::int64_t> ids = expected.get(folder, "ids").to_integers(folder, "ids");
  for (const auto& [dtype, tolerance] : {std::pair(Dtype::kF32, 1e-5), std::pair(Dtype::kBF16, 4e-3)}) {
    const SystemInputs inputs = inputs_of(layer, hidden.get(folder, "hidden_states"), dtype);
    ReferenceBackend backend;
    const auto execution = backend.prepare_system(inputs);
    execution->run(L2State::kWarm);
    const Routing routing = execution->routing();
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), routing.expert_ids.begin(), routing.expert_ids.end()));
    EXPECT_LT(relative_distance(execution->output(), y), tolerance) << to_string(dtype);
    const SystemCheck check = check_system(backend, inputs, inputs.shape.num_tokens);
    EXPECT_TRUE(check.passed()) << check.describe();
    EXPECT_LT(check.error.relative_error, tolerance) << to_string(dtype);
  }
}

class TransformersLayerOutput : public testing::TestWithParam<const char*> {};

TEST_P(TransformersLayerOutput, EqualsPyTorchs) {
  const std::string folder = data(GetParam());
  const CheckpointLayer layer = read_checkpoint_layer(folder, 1, {});
  const ArrayFile hidden = read_array_file(folder + "/hidden.npy");
  const std::vector<float> y = read_array_file(folder + "/y.npy").get(folder, "").to_floats(folder, "y");
  const SystemInputs inputs = inputs_of(layer, hidden.get(folder, ""), Dtype::kF32);
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  execution->run(L2State::kWarm);
  const HostTensor output = execution->output();
  EXPECT_LT(relative_distance(output, y), 1e-5);
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const SystemInputs stored = inputs_of(layer, hidden.get(folder, ""), dtype);
    const SystemCheck check = check_system(backend, stored, stored.shape.num_tokens);
    EXPECT_TRUE(check.passed()) << check.describe();
    EXPECT_LT(check.error.relative_error, dtype == Dtype::kF32 ? 1e-5 : 4e-3);
  }
}

INSTANTIATE_TEST_SUITE_P(Recorded, TransformersLayerOutput,
                         testing::Values("transformers_mixtral", "transformers_olmoe"));
INSTANTIATE_TEST_SUITE_P(Families, CheckpointLayerOutput, testing::Values("mixtral", "deepseek", "qwen"));

}  // namespace
}  // namespace moescope
