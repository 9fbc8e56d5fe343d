#include <gtest/gtest.h>

#include <algorithm>

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

/// One road of the stage on buffers of its own, given p and q of the fp64 loop.
class Wgrad {
 public:
  Wgrad(const BackwardCase& c, bool dense, Dtype gradients)
      : shape_(c.experts.shape),
        dense_(dense),
        gradients_(gradients),
        device_(c.experts),
        dy_(test::to_device(c.dy, shape_.dtype)),
        p_(test::to_device(c.floats(c.p))),
        q_(test::to_device(c.floats(c.q))),
        dw_(shape_.num_experts() * shape_.hidden_size * dtype_bytes(gradients)),
        dv_(dw_.bytes()),
        offsets_(shape_.num_experts() + 1),
        pairs_(shape_.num_pairs()),
        touched_(shape_.num_experts() + 1),
        workspace_(std::max({cuda::dense_masked_wgrad_workspace_bytes(shape_),
                             cuda::pairs_by_expert_workspace_bytes(shape_),
                             cuda::touched_experts_workspace_bytes(shape_)})) {}

  void run() {
    for (const auto* buffer : {&dw_, &dv_, &workspace_}) {
      MOESCOPE_CUDA_CHECK(cudaMemset(buffer->get(), 0xff, static_cast<std::size_t>(buffer->bytes())));
    }
    const cuda::DevicePairGradients values{
        .gates = nullptr, .p = reinterpret_cast<float*>(p_.get()), .q = reinterpret_cast<float*>(q_.get())};
    const cuda::WgradOutput output{.dtype = gradients_, .w_in = dw_.get(), .w_out = dv_.get()};
    std::int32_t* const count = touched_.get() + shape_.num_experts();
    if (dense_) {
      cuda::launch_experts_wgrad_dense_masked(blas_, shape_, device_.x(), dy_.get(), device_.routing(),
                                              values, workspace_.get(), output, nullptr);
      cuda::launch_touched_experts(shape_, device_.routing(), touched_.get(), count, workspace_.get(),
                                   nullptr);
    } else {
      const cuda::DevicePairsByExpert sorted{.offsets = offsets_.get(),
                                             .pairs = pairs_.get(),
                                             .touched = touched_.get(),
                                             .touched_count = count};
      cuda::launch_pairs_by_expert(shape_, device_.routing(), sorted, workspace_.get(), nullptr);
      cuda::launch_experts_wgrad(shape_, device_.x(), dy_.get(), values, sorted, output, nullptr);
    }
  }
  std::vector<float> dw() const { return gradient_of(dw_, gradients_); }
  std::vector<float> dv() const { return gradient_of(dv_, gradients_); }
  std::vector<std::int32_t> touched() const {
    auto list = to_host<std::int32_t>(touched_.get(), shape_.num_experts() + 1);
    list.resize(static_cast<std::size_t>(list.back()));
    return list;
  }

 private:
  LayerShape shape_;
  bool dense_;
  Dtype gradients_;
  DeviceExperts device_;
  cuda::DeviceBuffer<std::byte> dy_, p_, q_, dw_, dv_;
  cuda::DeviceBuffer<std::int32_t> offsets_, pairs_, touched_;
  cuda::DeviceBuffer<std::byte> workspace_;
  cuda::CublasLt blas_;
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

std::string name_of(const testing::TestParamInfo<std::tuple<RoutingCase, bool>>& test) {
  return test::case_name(std::get<0>(test.param)) + (std::get<1>(test.param) ? "_dense" : "_pairs");
}
INSTANTIATE_TEST_SUITE_P(Cases, ExpertsWgrad,
                         testing::Combine(testing::ValuesIn(test::backward_cases()), testing::Bool()),
                         name_of);

}  // namespace
}  // namespace moescope
