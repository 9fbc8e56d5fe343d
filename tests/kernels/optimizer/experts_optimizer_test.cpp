// AdamW on the GPU against the mirror's, step by step: rows that are listed, rows that missed steps, all
// rows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/optimizer.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/host_copy.hpp"
#include "reference/backward/experts_optimizer.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

using cuda::Bytes;
using cuda::DeviceBuffer;
using reference::ExpertsOptimizer;

/// The tables of both on the device, stepped with lists and gradients that the host has.
class DeviceTables {
 public:
  DeviceTables(const HostTensor& w_in, const HostTensor& w_out, Dtype gradients)
      : rows_(w_in.rows()),
        cols_(w_in.cols()),
        storage_(w_in.dtype()),
        gradient_dtype_(gradients),
        state_(6 * w_in.size()),
        last_step_(rows_),
        list_(rows_ + 1),
        step_(1),
        factors_(2),
        w_in_(cuda::upload(w_in, nullptr)),
        w_out_(cuda::upload(w_out, nullptr)) {
    MOESCOPE_CUDA_CHECK(cudaMemset(state_.get(), 0xff, static_cast<std::size_t>(state_.bytes())));
    cuda::launch_adamw_start(tables(nullptr, nullptr), clock(), nullptr);
  }

  /// `all`: rows are not listed.
  void step(const HostTensor& dw, const HostTensor& dv, const std::vector<std::int32_t>& rows, bool all,
            const AdamWOptions& options) {
    const Bytes g_in = cuda::upload(dw, nullptr);
    const Bytes g_out = cuda::upload(dv, nullptr);
    cuda::launch_adamw_step(tables(g_in.get(), g_out.get()), options, listed(rows, all), clock(), nullptr);
    MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
  }
  void catch_up(const std::vector<std::int32_t>& rows, bool all, const AdamWOptions& options) {
    cuda::launch_adamw_catch_up(tables(nullptr, nullptr), options, listed(rows, all), clock(), nullptr);
    MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
  }
  HostTensor w_in() const { return cuda::download(storage_, rows_, cols_, w_in_.get(), nullptr); }
  HostTensor w_out() const { return cuda::download(storage_, rows_, cols_, w_out_.get(), nullptr); }
  std::vector<float> state() const { return cuda::copy_to_host(state_.get(), state_.count(), nullptr); }
  std::int32_t steps() const { return cuda::copy_to_host(step_.get(), 1, nullptr).front(); }

 private:
  cuda::AdamWClock clock() const { return {step_.get(), factors_.get()}; }
  cuda::AdamWTables tables(const void* g_in, const void* g_out) const {
    const std::int64_t size = rows_ * cols_;
    const auto table = [&](float* state, const void* gradient, const Bytes& weights) {
      return cuda::AdamWTable{.master = state,
                              .first = state + size,
                              .second = state + 2 * size,
                              .gradient = gradient,
                              .weights = weights.get()};
    };
    return {.tables = {table(state_.get(), g_in, w_in_), table(state_.get() + 3 * size, g_out, w_out_)},
            .last_step = last_step_.get(),
            .num_experts = rows_,
            .hidden_size = cols_,
            .gradients = gradient_dtype_,
            .storage = storage_};
  }
  cuda::OptimizerRows listed(const std::vector<std::int32_t>& rows, bool all) const {
    if (all) {
      return {};
    }
    std::vector<std::int32_t> host = rows;
    host.resize(static_cast<std::size_t>(rows_), -1);
    host.push_back(static_cast<std::int32_t>(rows.size()));
    MOESCOPE_CUDA_CHECK(
        cudaMemcpy(list_.get(), host.data(), host.size() * sizeof(host[0]), cudaMemcpyHostToDevice));
    return {list_.get(), list_.get() + rows_};
  }

  std::int64_t rows_;
  std::int64_t cols_;
  Dtype storage_;
  Dtype gradient_dtype_;
  DeviceBuffer<float> state_;
  DeviceBuffer<std::int32_t> last_step_, list_, step_;
  DeviceBuffer<float> factors_;
  Bytes w_in_, w_out_;
};

/// fp32: within rounding of how far weights moved since `start`, and of the weight in up to 16 steps, each of
/// which may be a fused operation on one side and two on the other. bf16: a few may round to the other side.
void expect_close(const HostTensor& ours, const HostTensor& theirs, const HostTensor& start) {
  double moved = 0;
  for (std::int64_t r = 0; r < ours.rows(); ++r) {
    for (std::int64_t c = 0; c < ours.cols(); ++c) {
      moved = std::max(moved, std::abs(static_cast<double>(theirs.at(r, c)) - start.at(r, c)));
    }
  }
  ASSERT_GT(moved, 0);
  std::int64_t differ = 0;
  double worst = 0;
  for (std::int64_t r = 0; r < ours.rows(); ++r) {
    for (std::int64_t c = 0; c < ours.cols(); ++c) {
      const double expected = theirs.at(r, c);
      const double off = std::abs(static_cast<double>(ours.at(r, c)) - expected);
      const double limit = ours.dtype() == Dtype::kF32 ? 1e-5 * moved + 16 * 0x1p-24 * std::abs(expected)
                                                       : 1.01 * (0x1p-7 * std::abs(expected) + 1e-6);
      worst = std::max(worst, off / limit);
      differ += off > 0 ? 1 : 0;
    }
  }
  EXPECT_LE(worst, 1);
  if (ours.dtype() == Dtype::kBF16) {
    EXPECT_LE(differ, ours.size() / 200 + 1);
  }
}

struct Case {
  std::int64_t rows;
  std::int64_t cols;
  Dtype storage;
  Dtype gradients;
};

class ExpertsOptimizerGpu : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
  HostTensor random(Dtype dtype, std::uint64_t seed) const {
    return test::random_tensor(Dtype::kF32, GetParam().rows, GetParam().cols, 1, seed,
                               RandomStream::kExpertIn)
        .to(Dtype::kBF16)
        .to(dtype);
  }
  /// Of 0 to rows - 1, each with a chance of one in `one_in`.
  std::vector<std::int32_t> some_rows(std::uint64_t seed, double one_in) const {
    const Philox random(seed, 78);
    std::vector<std::int32_t> rows;
    for (std::int64_t row = 0; row < GetParam().rows; ++row) {
      if (random.uniform(static_cast<std::uint64_t>(row)) * one_in < 1) {
        rows.push_back(static_cast<std::int32_t>(row));
      }
    }
    return rows;
  }
};

constexpr AdamWOptions kOptions = {.learning_rate = 0.01, .weight_decay = 0.1};

TEST_P(ExpertsOptimizerGpu, StepsListedRowsAsTheMirrorDoes) {
  const Case c = GetParam();
  const HostTensor start_in = random(c.storage, 1);
  const HostTensor start_out = random(c.storage, 2);
  HostTensor w_in = start_in.clone();
  HostTensor w_out = start_out.clone();
  ExpertsOptimizer mirror_in(w_in, kOptions);
  ExpertsOptimizer mirror_out(w_out, kOptions);
  DeviceTables ours(w_in, w_out, c.gradients);
  for (std::uint64_t t = 0; t < 12; ++t) {
    const auto rows = t == 5 ? std::vector<std::int32_t>{} : some_rows(t, 3);
    const HostTensor dw = random(c.gradients, 100 + t);
    const HostTensor dv = random(c.gradients, 200 + t);
    mirror_in.step(w_in, dw, rows);
    mirror_out.step(w_out, dv, rows);
    ours.step(dw, dv, rows, false, kOptions);
  }
  EXPECT_EQ(ours.steps(), 12);
  expect_close(ours.w_in(), w_in, start_in);
  expect_close(ours.w_out(), w_out, start_out);
  mirror_in.flush(w_in);
  mirror_out.flush(w_out);
  ours.catch_up({}, true, kOptions);
  expect_close(ours.w_in(), w_in, start_in);
  expect_close(ours.w_out(), w_out, start_out);
  const auto state = ours.state();
  ours.catch_up({}, true, kOptions);  // nothing is left to make up for
  EXPECT_EQ(ours.state(), state);
}

TEST_P(ExpertsOptimizerGpu, StepsAllRowsAsTheMirrorDoes) {
  const Case c = GetParam();
  const HostTensor start = random(c.storage, 1);
  HostTensor w_in = start.clone();
  HostTensor w_out = start.clone();
  ExpertsOptimizer mirror_in(w_in, kOptions);
  ExpertsOptimizer mirror_out(w_out, kOptions);
  DeviceTables ours(w_in, w_out, c.gradients);
  for (std::uint64_t t = 0; t < 5; ++t) {
    const HostTensor dw = random(c.gradients, 100 + t);
    const HostTensor dv = random(c.gradients, 200 + t);
    mirror_in.dense_step(w_in, dw);
    mirror_out.dense_step(w_out, dv);
    ours.step(dw, dv, {}, true, kOptions);
  }
  expect_close(ours.w_in(), w_in, start);
  expect_close(ours.w_out(), w_out, start);
}

/// Past replay_steps what is left of the movement is dropped, and decay and moments go on.
TEST_P(ExpertsOptimizerGpu, MakesUpForMoreStepsThanItReplays) {
  const Case c = GetParam();
  AdamWOptions options = kOptions;
  options.replay_steps = 40;
  const HostTensor start = random(c.storage, 1);
  HostTensor w_in = start.clone();
  HostTensor w_out = start.clone();
  ExpertsOptimizer mirror_in(w_in, options);
  ExpertsOptimizer mirror_out(w_out, options);
  DeviceTables ours(w_in, w_out, c.gradients);
  std::vector<std::int32_t> rows = {0};
  if (c.rows > 1) {
    rows.push_back(static_cast<std::int32_t>(c.rows) - 1);
  }
  const HostTensor dw = random(c.gradients, 100);
  const HostTensor dv = random(c.gradients, 200);
  const auto step = [&](const std::vector<std::int32_t>& listed) {
    mirror_in.step(w_in, dw, listed);
    mirror_out.step(w_out, dv, listed);
    ours.step(dw, dv, listed, false, options);
  };
  step(rows);
  for (int t = 0; t < 70; ++t) {
    step({});
  }
  step(rows);
  expect_close(ours.w_in(), w_in, start);
  expect_close(ours.w_out(), w_out, start);
}

/// Rows that are not listed keep every bit of weights and state.
TEST_P(ExpertsOptimizerGpu, LeavesOtherRowsAlone) {
  const Case c = GetParam();
  const HostTensor start = random(c.storage, 1);
  DeviceTables ours(start, start, c.gradients);
  std::vector<std::int32_t> all(static_cast<std::size_t>(c.rows));
  std::iota(all.begin(), all.end(), 0);
  ours.step(random(c.gradients, 100), random(c.gradients, 200), all, false, kOptions);
  const auto before = ours.state();
  const HostTensor w_before = ours.w_out();
  const std::vector<std::int32_t> one = {static_cast<std::int32_t>(c.rows / 2)};
  ours.step(random(c.gradients, 101), random(c.gradients, 201), one, false, kOptions);
  const auto after = ours.state();
  const HostTensor w_after = ours.w_out();
  for (std::size_t i = 0; i < after.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / c.cols % c.rows;
    if (row == one[0]) continue;
    ASSERT_EQ(before[i], after[i]) << i;
  }
  for (std::int64_t r = 0; r < c.rows; ++r) {
    for (std::int64_t k = 0; k < c.cols && r != one[0]; ++k) {
      ASSERT_EQ(w_before.at(r, k), w_after.at(r, k)) << r;
    }
  }
  EXPECT_NE(w_before.at(one[0], 0), w_after.at(one[0], 0));
}

INSTANTIATE_TEST_SUITE_P(Cases, ExpertsOptimizerGpu,
                         testing::Values(Case{24, 16, Dtype::kF32, Dtype::kF32},
                                         Case{700, 264, Dtype::kF32, Dtype::kF32},
                                         Case{700, 264, Dtype::kBF16, Dtype::kBF16},
                                         Case{90, 1024, Dtype::kBF16, Dtype::kF32},
                                         Case{1, 8, Dtype::kF32, Dtype::kBF16}));

TEST(ExpertsOptimizerErrors, NameTheField) {
  MOESCOPE_NEEDS_GPU();
  cuda::AdamWTables tables;
  tables.num_experts = 4;
  tables.hidden_size = 6;
  const auto refusal = [&](const AdamWOptions& options) {
    return test::error_text<InvalidArgument>(
        [&] { cuda::launch_adamw_step(tables, options, {}, {}, nullptr); });
  };
  EXPECT_NE(refusal({}).find("hidden_size"), std::string::npos);
  EXPECT_NE(refusal({.beta1 = 1}).find("beta1"), std::string::npos);
  tables.hidden_size = 8;
  tables.num_experts = 0;
  EXPECT_NE(refusal({}).find("num_experts"), std::string::npos);
}

}  // namespace
}  // namespace moescope
