// The fp64 step against torch 2.15's autograd in float64: router with BatchNorm1d in training, top K,
// experts, shared MLP, and both auxiliary losses written over all N scores (weights 3 and 2).
#include <gtest/gtest.h>

#include <cmath>

#include "core/files/npy.hpp"
#include "reference/oracle/oracle_training.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

class TorchStep : public testing::TestWithParam<GateMode> {};

TEST_P(TorchStep, HasTheOraclesGradients) {
  const std::string path =
      test::source_path("tests/data/training/torch_" + std::string(to_string(GetParam())) + ".npz");
  const ArrayFile file = read_npy_or_npz(path);
  const auto matrix = [&](const char* name) {
    return file.get(path, name).to_tensor(Dtype::kF32, path, name);
  };
  const auto floats = [&](const char* name) { return file.get(path, name).to_floats(path, name); };
  LayerInputs inputs;
  inputs.hidden_states = matrix("x");
  inputs.router = {matrix("Wr"), matrix("Wc"), {}, {}};
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = matrix("W");
  experts->w_out = matrix("V");
  experts->shared = SharedMlpWeights{matrix("g"), matrix("u"), matrix("dn")};
  inputs.experts = experts;
  LayerShape& shape = inputs.shape;
  shape.num_tokens = inputs.hidden_states.rows();
  shape.hidden_size = inputs.hidden_states.cols();
  shape.grid_rows = inputs.router.row.rows();
  shape.grid_cols = inputs.router.col.rows();
  shape.top_k = file.get(path, "top_k").to_integers(path, "top_k").front();
  shape.shared_size = experts->shared->gate.rows();
  shape.dtype = Dtype::kF32;
  shape.gate_mode = GetParam();
  inputs.validate();
  TrainingOptions options;
  options.batch_norm = BatchNorm{};
  options.losses = {.balance = 3, .z = 2};
  const OracleTraining step = oracle_training(inputs, matrix("dy"), nullptr, options, {});
  const auto compare = [&](const char* name, const OracleGradient& ours, bool transposed = false) {
    const HostTensor theirs = matrix(name);
    double error = 0;
    double scale = 0;
    for (std::int64_t i = 0; i < theirs.rows(); ++i) {
      for (std::int64_t j = 0; j < theirs.cols(); ++j) {
        const double one = transposed ? ours.row(j)[i] : ours.row(i)[j];
        error = std::max(error, std::abs(one - theirs.at(i, j)));
        scale = std::max(scale, std::abs(static_cast<double>(theirs.at(i, j))));
      }
    }
    EXPECT_LE(error, 2e-7 * scale) << name;  // theirs were rounded to float32
    EXPECT_GT(scale, 0) << name;
  };
  compare("grad.x", step.hidden_states);
  compare("grad.W", step.w_in);
  compare("grad.V", step.w_out);
  compare("grad.Wr", step.router_row);
  compare("grad.Wc", step.router_col);
  compare("grad.g", step.shared_gate);
  compare("grad.u", step.shared_up);
  compare("grad.dn", step.shared_down, true);
  EXPECT_NEAR(step.balance_loss, floats("bal")[0], 1e-6);
  EXPECT_NEAR(step.z_loss, floats("zl")[0], 1e-5);
  const auto rows = static_cast<std::size_t>(shape.grid_rows);
  const RunningNorm fresh{std::vector<double>(rows, 0.0), std::vector<double>(rows, 1.0)};
  const RunningNorm after = updated_norm(fresh, step.row, shape.num_tokens, options.batch_norm->momentum);
  for (std::size_t r = 0; r < rows; ++r) {
    EXPECT_NEAR(after.mean[r], floats("rm")[r], 1e-6);
    EXPECT_NEAR(after.variance[r], floats("rv")[r], 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Gates, TorchStep, testing::Values(GateMode::kSoftmax, GateMode::kProbability),
                         [](const auto& test) { return std::string(to_string(test.param)); });

}  // namespace
}  // namespace moescope
