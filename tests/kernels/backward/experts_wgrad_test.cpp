#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/backward_case.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope {
namespace {

using test::BackwardCase;
using test::DeviceExperts;
using test::RoutingCase;

template <class T>
std::vector<T> to_host(const void* device, std::int64_t count) {
  std::vector<T> host(static_cast<std::size_t>(count));
  MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
  MOESCOPE_CUDA_CHECK(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return host;
}

/// Values of a gradient in `dtype`, as floats.
std::vector<float> gradient_of(const cuda::DeviceBuffer<std::byte>& device, Dtype dtype) {
  if (dtype == Dtype::kF32) {
    return to_host<float>(device.get(), device.bytes() / 4);
  }
  std::vector<float> values;
  for (const Bf16 value : to_host<Bf16>(device.get(), device.bytes() / 2)) {
    values.push_back(to_float(value));
  }
  return values;
}

/// For values among which there may be NaN.
std::vector<std::uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) {
    bits.push_back(std::bit_cast<std::uint32_t>(value));
  }
  return bits;
}

/// One road of the stage on buffers of its own, given p and q of the fp64 loop.
class Wgrad {
 public:
  Wgrad(const BackwardCase& c, bool dense, Dtype gradients, GradientForm form = GradientForm::kStored,
        bool few = false)
      : shape_(c.experts.shape),
        dense_(dense),
        gradients_(gradients),
        form_(form),
        few_(few),
        device_(c.experts),
        dy_(test::to_device(c.dy, shape_.dtype)),
        p_(test::to_device(c.floats(c.p))),
        q_(test::to_device(c.floats(c.q))),
        dw_(shape_.num_experts() * shape_.hidden_size * dtype_bytes(gradients)),
        dv_(dw_.bytes()),
        offsets_(2 * (shape_.num_experts() + 1)),
        pairs_(shape_.num_pairs()),
        touched_(shape_.num_experts() + 1),
        workspace_(std::max({cuda::dense_masked_wgrad_workspace_bytes(shape_),
                             cuda::pairs_by_expert_workspace_bytes(shape_),
                             cuda::few_pairs_by_expert_workspace_bytes(shape_),
                             cuda::touched_experts_workspace_bytes(shape_)})) {}

  void run() {
    fill(0xff, workspace_);
    if (form_ != GradientForm::kAdded) {  // else start() says what is there
      fill(0xff, dw_);
      fill(0xff, dv_);
    }
    const cuda::DevicePairGradients values{
        .gates = nullptr, .p = reinterpret_cast<float*>(p_.get()), .q = reinterpret_cast<float*>(q_.get())};
    const cuda::WgradOutput output{
        .dtype = gradients_, .w_in = dw_.get(), .w_out = dv_.get(), .form = form_};
    std::int32_t* const count = touched_.get() + shape_.num_experts();
    if (dense_) {
      if (!blas_) {
        blas_.emplace();  // takes longer than a small test
      }
      cuda::launch_experts_wgrad_dense_masked(*blas_, shape_, device_.x(), dy_.get(), device_.routing(),
                                              values, workspace_.get(), output, nullptr);
      const cuda::DeviceBuffer<std::int32_t> loads(shape_.num_experts());
      MOESCOPE_CUDA_CHECK(cudaMemset(loads.get(), 0, static_cast<std::size_t>(loads.bytes())));
      cuda::launch_expert_loads(shape_, device_.routing(), loads.get(), nullptr);
      cuda::launch_touched_experts(shape_, loads.get(), touched_.get(), count, workspace_.get(), nullptr);
    } else {
      const cuda::DevicePairsByExpert sorted{.offsets = offsets_.get(),
                                             .pairs = pairs_.get(),
                                             .touched = touched_.get(),
                                             .touched_count = count,
                                             .touched_offsets = offsets_.get() + shape_.num_experts() + 1};
      (few_ ? cuda::launch_few_pairs_by_expert : cuda::launch_pairs_by_expert)(
          shape_, device_.routing(), sorted, workspace_.get(), nullptr);
      cuda::launch_experts_wgrad(shape_, device_.x(), dy_.get(), values, sorted, output, nullptr);
    }
  }
  /// What is added to: `value` in each element.
  void start(float value) {
    const std::vector<float> floats(static_cast<std::size_t>(shape_.num_experts() * shape_.hidden_size),
                                    value);
    for (const auto* buffer : {&dw_, &dv_}) {
      const auto from = test::to_device(floats, gradients_);
      MOESCOPE_CUDA_CHECK(cudaMemcpy(buffer->get(), from.get(), static_cast<std::size_t>(buffer->bytes()),
                                     cudaMemcpyDeviceToDevice));
    }
  }
  std::vector<std::int32_t> pairs() const { return to_host<std::int32_t>(pairs_.get(), pairs_.count()); }
  /// Where pairs of all experts begin, then as many of touched ones as there are and the end.
  std::vector<std::int32_t> offsets() const {
    auto all = to_host<std::int32_t>(offsets_.get(), offsets_.count());
    all.resize(static_cast<std::size_t>(shape_.num_experts() + 2) + touched().size());
    return all;
  }
  std::vector<float> dw() const { return gradient_of(dw_, gradients_); }
  std::vector<float> dv() const { return gradient_of(dv_, gradients_); }
  std::vector<std::int32_t> touched() const {
    auto list = to_host<std::int32_t>(touched_.get(), shape_.num_experts() + 1);
    list.resize(static_cast<std::size_t>(list.back()));
    return list;
  }

 private:
  static void fill(int byte, const cuda::DeviceBuffer<std::byte>& buffer) {
    MOESCOPE_CUDA_CHECK(cudaMemset(buffer.get(), byte, static_cast<std::size_t>(buffer.bytes())));
  }

  LayerShape shape_;
  bool dense_;
  Dtype gradients_;
  GradientForm form_;
  bool few_;
  DeviceExperts device_;
  cuda::DeviceBuffer<std::byte> dy_, p_, q_, dw_, dv_;
  cuda::DeviceBuffer<std::int32_t> offsets_, pairs_, touched_;
  cuda::DeviceBuffer<std::byte> workspace_;
  std::optional<cuda::CublasLt> blas_;
};

class ExpertsWgrad : public testing::TestWithParam<std::tuple<RoutingCase, bool>> {};

TEST_P(ExpertsWgrad, EqualsThePlainLoopInEitherDtypeAndRepeatsBitForBit) {
  MOESCOPE_NEEDS_GPU();
  const auto& [routing, dense] = GetParam();
  const BackwardCase c(routing, 6);
  const LayerShape& shape = c.experts.shape;
  for (const Dtype gradients : {Dtype::kF32, Dtype::kBF16}) {
    if (dense && shape.dtype == Dtype::kF32 && gradients == Dtype::kBF16) {
      continue;  // no such product
    }
    SCOPED_TRACE(to_string(gradients));
    const bool rounds = gradients == Dtype::kBF16 || (dense && shape.dtype == Dtype::kBF16);
    const double limit = rounds ? 5e-3 : 1e-5;
    Wgrad wgrad(c, dense, gradients);
    wgrad.run();
    const auto dw = wgrad.dw();
    const auto dv = wgrad.dv();
    EXPECT_LE(test::relative_error(dw, c.dw), limit);
    EXPECT_LE(test::relative_error(dv, c.dv), limit);
    EXPECT_EQ(wgrad.touched(), touched_experts(c.experts.routing));
    const auto loads = expert_loads(c.experts.routing);
    for (std::size_t i = 0; i < dw.size(); ++i) {
      if (loads[i / static_cast<std::size_t>(shape.hidden_size)] == 0) {
        ASSERT_EQ(dw[i], 0) << i;
        ASSERT_EQ(dv[i], 0) << i;
      }
    }
    wgrad.run();
    EXPECT_EQ(wgrad.dw(), dw);
    EXPECT_EQ(wgrad.dv(), dv);
  }
}

/// Rows without tokens keep what is there, NaN or a number; those with tokens have the sums, on it.
TEST_P(ExpertsWgrad, WritesAndAddsToTouchedRowsAlone) {
  MOESCOPE_NEEDS_GPU();
  const auto& [routing, dense] = GetParam();
  if (dense) {
    return;  // products write all rows
  }
  const BackwardCase c(routing, 6);
  const LayerShape& shape = c.experts.shape;
  const auto loads = expert_loads(c.experts.routing);
  constexpr float kStart = 0.25F;
  for (const Dtype gradients : {Dtype::kF32, Dtype::kBF16}) {
    for (const GradientForm form : {GradientForm::kTouched, GradientForm::kAdded}) {
      SCOPED_TRACE(std::string(to_string(gradients)) + " " + std::string(to_string(form)));
      const bool adds = form == GradientForm::kAdded;
      Wgrad wgrad(c, false, gradients, form);
      wgrad.start(kStart);
      wgrad.run();
      const auto check = [&](const std::vector<float>& ours, std::vector<double> truth) {
        std::vector<float> rows;
        std::vector<double> expected;
        for (std::size_t i = 0; i < ours.size(); ++i) {
          if (loads[i / static_cast<std::size_t>(shape.hidden_size)] > 0) {
            rows.push_back(ours[i]);
            expected.push_back(truth[i] + (adds ? static_cast<double>(kStart) : 0.0));
          } else if (adds) {
            ASSERT_EQ(ours[i], kStart) << i;
          } else {
            ASSERT_TRUE(std::isnan(ours[i])) << i;
          }
        }
        EXPECT_LE(test::relative_error(rows, expected), gradients == Dtype::kBF16 ? 5e-3 : 1e-5);
      };
      check(wgrad.dw(), c.dw);
      check(wgrad.dv(), c.dv);
      const auto dw = wgrad.dw();
      wgrad.start(kStart);
      wgrad.run();
      EXPECT_EQ(bits_of(wgrad.dw()), bits_of(dw));
    }
  }
}

TEST_P(ExpertsWgrad, ListsOfFewTokensAreThoseOfTheSort) {
  MOESCOPE_NEEDS_GPU();
  const auto& [routing, dense] = GetParam();
  const BackwardCase c(routing, 6);
  if (dense || !cuda::pairs_are_few(c.experts.shape)) {
    return;
  }
  Wgrad sorted(c, false, Dtype::kF32, GradientForm::kTouched, false);
  Wgrad few(c, false, Dtype::kF32, GradientForm::kTouched, true);
  sorted.run();
  few.run();
  EXPECT_EQ(few.pairs(), sorted.pairs());
  EXPECT_EQ(few.offsets(), sorted.offsets());
  EXPECT_EQ(few.touched(), sorted.touched());
  EXPECT_EQ(few.touched(), touched_experts(c.experts.routing));
}

std::string name_of(const testing::TestParamInfo<std::tuple<RoutingCase, bool>>& test) {
  return test::case_name(std::get<0>(test.param)) + (std::get<1>(test.param) ? "_dense" : "_pairs");
}
INSTANTIATE_TEST_SUITE_P(Cases, ExpertsWgrad,
                         testing::Combine(testing::ValuesIn(test::backward_cases()), testing::Bool()),
                         name_of);

/// Experts enough that a warp takes several at a time.
RoutingCase many_experts(Dtype dtype) {
  RoutingCase c{test::make_shape(64, 264, 100, 100, 300), test::RoutingSkew::kUniform};
  c.shape.dtype = dtype;
  return c;
}
INSTANTIATE_TEST_SUITE_P(ManyExperts, ExpertsWgrad,
                         testing::Combine(testing::Values(many_experts(Dtype::kBF16),
                                                          many_experts(Dtype::kF32)),
                                          testing::Values(false)),
                         name_of);

}  // namespace
}  // namespace moescope
