// The router's backward on the device against the CPU's, stage by stage: router_norm, router_select_backward,
// router_losses, router_project_backward.
#include <gtest/gtest.h>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/host_copy.hpp"
#include "reference/backward/backward.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/training.hpp"

namespace moescope {
namespace {

using cuda::DeviceBuffer;

std::vector<double> both_sides(const HostTensor& row, const HostTensor& col) {
  std::vector<double> all;
  for (std::int64_t t = 0; t < row.rows(); ++t) {
    for (const float v : row.f32().row_span(t)) all.push_back(v);
    for (const float v : col.f32().row_span(t)) all.push_back(v);
  }
  return all;
}

/// Relative; of what is zero, absolute (one pair's softmax has no gradient).
double error_of(const std::vector<float>& ours, const std::vector<double>& theirs) {
  double difference = 0;
  double norm = 0;
  EXPECT_EQ(ours.size(), theirs.size());
  for (std::size_t i = 0; i < std::min(ours.size(), theirs.size()); ++i) {
    difference += (ours[i] - theirs[i]) * (ours[i] - theirs[i]);
    norm += theirs[i] * theirs[i];
  }
  return std::sqrt(difference / (norm == 0 ? 1 : norm));
}

/// A layer's router between forward and backward, as the CPU has it, and its logits on the device.
class RouterBackward : public testing::TestWithParam<LayerShape> {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    blas_.emplace();
    problem_.emplace(GetParam(), 4);
    logits_ = reference::router_project(problem_->inputs);
    device_logits_ = cuda::make_filled<float>(shape().num_tokens * sides(), nullptr);
    cuda::upload_logits(shape(), logits_, device_logits_.get(), nullptr);
    lse_ = cuda::make_filled<float>(2 * shape().num_tokens, nullptr);
  }
  const LayerShape& shape() const { return GetParam(); }
  std::int64_t sides() const { return shape().grid_rows + shape().grid_cols; }
  std::vector<float> host(const float* device, std::int64_t count) const {
    return cuda::copy_to_host(device, count, nullptr);
  }
  std::vector<float> host(const DeviceBuffer<float>& device) const {
    return host(device.get(), device.count());
  }
  /// Selects, and makes log-probabilities of the logits on either side.
  void select() {
    routing_ = reference::router_select(shape(), logits_);
    log_p_ = {logits_.row.clone(), logits_.col.clone()};
    reference::log_softmax_rows(log_p_.row);
    reference::log_softmax_rows(log_p_.col);
    for (std::int64_t t = 0; t < shape().num_tokens; ++t) {
      row_lse_.push_back(logits_.row.f32().row(t)[0] - log_p_.row.f32().row(t)[0]);
      col_lse_.push_back(logits_.col.f32().row(t)[0] - log_p_.col.f32().row(t)[0]);
    }
    cuda::launch_log_softmax(shape(), device_logits_.get(), lse_.get(), nullptr);
    for (std::int64_t i = 0; i < routing_.num_pairs(); ++i) {
      gate_gradients_.push_back(std::sin(static_cast<float>(i)) + 0.2F);
    }
  }
  cuda::DeviceLogProbs log_probs() const {
    return {.row = device_logits_.get(),
            .col = device_logits_.get() + shape().grid_rows,
            .row_lead = sides(),
            .col_lead = sides()};
  }
  static cuda::Bytes bytes(std::int64_t count) { return cuda::make_filled<std::byte>(count, nullptr); }

  std::optional<test::TrainingProblem> problem_;
  RouterLogits logits_;
  RouterLogits log_p_;
  std::vector<float> row_lse_;
  std::vector<float> col_lse_;
  Routing routing_;
  std::vector<float> gate_gradients_;
  DeviceBuffer<float> device_logits_;
  DeviceBuffer<float> lse_;
  std::optional<cuda::CublasLt> blas_;
};

TEST_P(RouterBackward, LogSoftmaxIsTheReferences) {
  select();
  EXPECT_LE(error_of(host(device_logits_), both_sides(log_p_.row, log_p_.col)), 1e-6);
  std::vector<double> lse(row_lse_.begin(), row_lse_.end());
  lse.insert(lse.end(), col_lse_.begin(), col_lse_.end());
  EXPECT_LE(error_of(host(lse_), lse), 1e-6);
}

TEST_P(RouterBackward, LogitsGradientsAndLossesAreTheReferences) {
  for (const AuxiliaryLosses losses : {AuxiliaryLosses{}, AuxiliaryLosses{.balance = 3},
                                       AuxiliaryLosses{.z = 2}, AuxiliaryLosses{.balance = 2, .z = 3}}) {
    SetUp();
    row_lse_.clear();
    col_lse_.clear();
    gate_gradients_.clear();
    select();
    const auto expected = reference::router_select_backward(shape(), log_p_, routing_, gate_gradients_,
                                                            losses, row_lse_, col_lse_);
    const cuda::RoutingBuffers pairs(shape(), routing_, nullptr);
    const DeviceBuffer<float> gradients = cuda::make_filled<float>(shape().num_pairs(), nullptr);
    MOESCOPE_CUDA_CHECK(cudaMemcpy(gradients.get(), gate_gradients_.data(),
                                   gate_gradients_.size() * sizeof(float), cudaMemcpyHostToDevice));
    const DeviceBuffer<float> ours = cuda::make_filled<float>(shape().num_tokens * sides(), nullptr);
    const auto run = [&] {
      cuda::launch_router_select_backward(shape(), pairs.view(), gradients.get(), log_probs(), ours.get(),
                                          nullptr);
      if (!losses.any()) {
        return;
      }
      const DeviceBuffer<std::int32_t> loads(shape().num_experts());
      MOESCOPE_CUDA_CHECK(cudaMemset(loads.get(), 0, static_cast<std::size_t>(loads.bytes())));
      cuda::launch_expert_loads(shape(), pairs.view(), loads.get(), nullptr);
      const DeviceBuffer<double> values = cuda::make_filled<double>(2, nullptr);
      const auto workspace = bytes(cuda::router_losses_workspace_bytes(shape(), losses));
      cuda::launch_router_losses(*blas_, shape(), losses, log_probs(), lse_.get(), loads.get(), ours.get(),
                                 values.get(), workspace.get(), nullptr);
      const auto made = cuda::copy_to_host(values.get(), 2, nullptr);
      EXPECT_NEAR(made[0], expected.balance_loss, 1e-5 * (expected.balance_loss + 1e-9));
      EXPECT_NEAR(made[1], expected.z_loss, 1e-5 * (expected.z_loss + 1e-9));
    };
    run();
    const auto first = host(ours);
    EXPECT_LE(error_of(first, both_sides(expected.logits.row, expected.logits.col)), 1e-5)
        << losses.balance << " " << losses.z;
    run();
    EXPECT_EQ(host(ours), first);
  }
}

TEST_P(RouterBackward, BatchNormIsTheReferences) {
  if (shape().num_tokens < 2) {
    return;
  }
  constexpr double kEps = 1e-5;
  const DeviceBuffer<double> statistics = cuda::make_filled<double>(2 * sides(), nullptr);
  const cuda::DeviceNorm norm{.mean = statistics.get(), .variance = statistics.get() + sides(), .eps = kEps};
  const auto workspace = bytes(cuda::column_sums_workspace_bytes(shape()));
  cuda::launch_router_norm(shape(), device_logits_.get(), norm, workspace.get(), nullptr);
  const auto row = reference::normalise_logits(logits_.row, kEps);
  const auto col = reference::normalise_logits(logits_.col, kEps);
  EXPECT_LE(error_of(host(device_logits_), both_sides(logits_.row, logits_.col)), 1e-5);
  const HostTensor normalised_row = logits_.row.clone();
  const HostTensor normalised_col = logits_.col.clone();
  select();

  const auto tensor = [&](std::int64_t cols, std::uint64_t seed) {
    return test::random_tensor(Dtype::kF32, shape().num_tokens, cols, 1, seed, RandomStream::kRouterRow);
  };
  RouterLogits gradient{tensor(shape().grid_rows, 21), tensor(shape().grid_cols, 22)};
  const DeviceBuffer<float> given = cuda::make_filled<float>(shape().num_tokens * sides(), nullptr);
  const DeviceBuffer<float> before = cuda::make_filled<float>(shape().num_tokens * sides(), nullptr);
  cuda::upload_logits(shape(), gradient, given.get(), nullptr);
  const DeviceBuffer<float> sums = cuda::make_filled<float>(sides(), nullptr);
  cuda::launch_column_sums(shape(), given.get(), sums.get(), workspace.get(), nullptr);
  std::vector<double> expected_sums(static_cast<std::size_t>(sides()));
  const auto all = both_sides(gradient.row, gradient.col);
  for (std::size_t i = 0; i < all.size(); ++i) {
    expected_sums[i % expected_sums.size()] += all[i];
  }
  EXPECT_LE(error_of(host(sums), expected_sums), 1e-6);

  cuda::launch_router_norm_backward(shape(), log_probs(), lse_.get(), norm, given.get(), before.get(),
                                    workspace.get(), nullptr);
  reference::normalise_logits_backward(gradient.row, normalised_row, row, kEps);
  reference::normalise_logits_backward(gradient.col, normalised_col, col, kEps);
  EXPECT_LE(error_of(host(before), both_sides(gradient.row, gradient.col)), 1e-5);
}

TEST_P(RouterBackward, ProjectionsGradientsAreTheReferences) {
  const auto& inputs = problem_->inputs;
  HostTensor dx = test::random_tensor(Dtype::kF32, shape().num_tokens, shape().hidden_size, 1, 5,
                                      RandomStream::kHiddenStates);
  const DeviceBuffer<float> gradient = cuda::make_filled<float>(shape().num_tokens * sides(), nullptr);
  cuda::upload_logits(shape(), logits_, gradient.get(), nullptr);
  const auto device_dx = cuda::upload(dx, nullptr);
  const auto x = cuda::upload(inputs.hidden_states, nullptr);
  const cuda::RouterBuffers router(shape(), inputs.router, nullptr);
  cuda::DeviceWeights weights;
  router.describe(weights);
  const auto workspace = bytes(cuda::router_project_backward_workspace_bytes(shape()));
  const DeviceBuffer<float> matrix = cuda::make_filled<float>(sides() * shape().hidden_size, nullptr);
  auto* const dx_floats = static_cast<float*>(static_cast<void*>(device_dx.get()));
  cuda::launch_router_project_backward(*blas_, shape(), x.get(), weights, gradient.get(),
                                       {.dtype = Dtype::kF32, .matrix = matrix.get()}, dx_floats,
                                       workspace.get(), nullptr);
  const auto expected = reference::router_project_backward(inputs, logits_, dx);
  std::vector<double> matrices;
  for (const HostTensor* side : {&expected.row, &expected.col}) {
    for (std::int64_t i = 0; i < side->size(); ++i) matrices.push_back(side->f32().data[i]);
  }
  EXPECT_LE(error_of(host(matrix), matrices), 1e-5);
  std::vector<double> sums;
  for (std::int64_t i = 0; i < dx.size(); ++i) sums.push_back(dx.f32().data[i]);
  EXPECT_LE(error_of(host(dx_floats, dx.size()), sums), 1e-5);
}

std::vector<LayerShape> shapes() {
  std::vector<LayerShape> all;
  for (const LayerShape& shape :
       {test::make_shape(1, 8, 4, 4, 1), test::make_shape(1, 32, 8, 8, 64),
        test::make_shape(3, 16, 48, 16, 7), test::make_shape(33, 24, 7, 11, 77),
        test::make_shape(50, 16, 1, 64, 9), test::make_shape(50, 16, 64, 1, 9),
        test::make_shape(300, 40, 16, 12, 11), test::make_shape(130, 72, 24, 40, 33),
        test::make_shape(5, 8, 1, 20000, 40), test::make_shape(20, 16, 32, 32, 700),
        test::make_shape(70, 8, 24, 40, 140)}) {
    for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
      for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
        all.push_back(shape);
        all.back().gate_mode = mode;
        all.back().dtype = dtype;
      }
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, RouterBackward, testing::ValuesIn(shapes()), [](const auto& test) {
  const LayerShape& s = test.param;
  return s.label() + (s.gate_mode == GateMode::kSoftmax ? "_softmax_" : "_probability_") +
         std::string(s.dtype == Dtype::kF32 ? "fp32" : "bf16");
});

}  // namespace
}  // namespace moescope
