// Times of the backward's kernels on strips, with a few tokens and experts held against fp64. Disabled: it is
// a measurement. kernels_tests --gtest_also_run_disabled_tests --gtest_filter='*StripsBackwardTimes*'
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/buffers/strip_lists.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "tests/support/device_strips_gradients.hpp"
#include "tests/support/strip_batches.hpp"
#include "tests/support/strips_gradients.hpp"

namespace moescope {
namespace {

using cuda::StaircaseSums;
using test::bf16;
using test::ErrorSum;
using test::make_shape;

/// Milliseconds of work on the default stream with cold L2, the median of several.
class ColdTimer {
 public:
  ColdTimer() : flush_(std::int64_t{512} << 20U) {
    MOESCOPE_CUDA_CHECK(cudaEventCreate(&begin_));
    MOESCOPE_CUDA_CHECK(cudaEventCreate(&end_));
  }
  ColdTimer(const ColdTimer&) = delete;
  ColdTimer& operator=(const ColdTimer&) = delete;
  ~ColdTimer() {
    (void)cudaEventDestroy(begin_);
    (void)cudaEventDestroy(end_);
  }

  float median(const std::function<void()>& setup, const std::function<void()>& work, int runs = 11) const {
    std::vector<float> times;
    for (int i = 0; i < runs; ++i) {
      setup();
      const auto half = static_cast<std::size_t>(flush_.bytes() / 2);
      MOESCOPE_CUDA_CHECK(cudaMemsetAsync(flush_.get(), i, 2 * half, nullptr));
      MOESCOPE_CUDA_CHECK(
          cudaMemcpyAsync(flush_.get(), flush_.get() + half, half, cudaMemcpyDeviceToDevice, nullptr));
      MOESCOPE_CUDA_CHECK(cudaEventRecord(begin_, nullptr));
      work();
      MOESCOPE_CUDA_CHECK(cudaEventRecord(end_, nullptr));
      MOESCOPE_CUDA_CHECK(cudaEventSynchronize(end_));
      float time = 0;
      MOESCOPE_CUDA_CHECK(cudaEventElapsedTime(&time, begin_, end_));
      times.push_back(time);
    }
    std::ranges::nth_element(times, times.begin() + runs / 2);
    return times[static_cast<std::size_t>(runs / 2)];
  }

 private:
  cuda::DeviceBuffer<std::byte> flush_;
  cudaEvent_t begin_ = nullptr;
  cudaEvent_t end_ = nullptr;
};

/// N(0, scale^2) rounded to bf16, drawn from a table: the benchmark's inputs need not be independent.
std::vector<float> random_rows(std::int64_t rows, std::int64_t d, double scale, unsigned seed) {
  constexpr std::size_t kTable = std::size_t{1} << 20U;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, static_cast<float>(scale));
  std::vector<float> table(kTable);
  for (float& value : table) value = round_to(Dtype::kBF16, normal(random));
  std::vector<float> values;
  values.reserve(static_cast<std::size_t>(rows * d));
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto first =
        table.begin() + static_cast<std::ptrdiff_t>(random() % (kTable - static_cast<std::size_t>(d)));
    values.insert(values.end(), first, first + d);
  }
  return values;
}

enum class Pattern : std::uint8_t { kGaussian, kSame };

struct TimedCase {
  LayerShape shape;
  StripRule rule = StripRule::kMinimalCover;
  Pattern pattern = Pattern::kGaussian;
  Dtype gradients = Dtype::kBF16;
};

/// Weights, made once for all cases.
struct Weights {
  std::vector<float> w_in, w_out;
  cuda::DeviceBuffer<std::byte> device_in, device_out;

  explicit Weights(const LayerShape& shape)
      : w_in(random_rows(shape.num_experts(), shape.hidden_size, 1 / std::sqrt(1.0 * shape.hidden_size), 1)),
        w_out(random_rows(shape.num_experts(), shape.hidden_size, 1 / std::sqrt(1.0 * shape.hidden_size), 2)),
        device_in(test::to_device(w_in, Dtype::kBF16)),
        device_out(test::to_device(w_out, Dtype::kBF16)) {}
  cuda::DeviceWeights view() const {
    cuda::DeviceWeights view;
    view.w_in = device_in.get();
    view.w_out = device_out.get();
    return view;
  }
};

void print_errors(const TimedCase& c, const Weights& weights, const std::vector<float>& x,
                  const std::vector<float>& dy, const cuda::HostStrips& host,
                  const test::StripsGradients& got, const char* what) {
  const Routing routing = cuda::routing_of(c.shape, host);
  const test::GradientInputs in{c.shape, routing, x, dy, weights.w_in, weights.w_out};
  const std::int64_t d = c.shape.hidden_size;
  const std::int64_t both = c.shape.grid_rows + c.shape.grid_cols;
  const std::vector<float> dx = got.dx();
  const std::vector<float> logits = got.logits();
  ErrorSum dx_error, logits_error, in_error, out_error;
  for (std::int64_t i = 0; i < 6; ++i) {
    const std::int64_t token = i * (c.shape.num_tokens - 1) / 5;
    const test::TokenReference own = test::reference_token(in, token, host.row_log_probs, host.col_log_probs);
    for (std::int64_t k = 0; k < d; ++k) {
      dx_error.add(static_cast<double>(dx[static_cast<std::size_t>(token * d + k)]),
                   own.dx[static_cast<std::size_t>(k)]);
    }
    for (std::int64_t k = 0; k < both; ++k) {
      const auto at = static_cast<std::size_t>(k);
      logits_error.add(static_cast<double>(logits[static_cast<std::size_t>(token * both + k)]),
                       own.logits[at], own.terms[at]);
    }
  }
  for (std::int64_t i = 0; i < 8; ++i) {
    const std::int32_t expert =
        routing.expert_ids[static_cast<std::size_t>(i * (routing.num_pairs() - 1) / 7)];
    const test::ExpertReference own = test::reference_expert(in, expert);
    const std::vector<float> w_in = got.expert_row(expert, false);
    const std::vector<float> w_out = got.expert_row(expert, true);
    for (std::size_t k = 0; k < w_in.size(); ++k) {
      in_error.add(static_cast<double>(w_in[k]), own.w_in[k]);
      out_error.add(static_cast<double>(w_out[k]), own.w_out[k]);
    }
  }
  std::printf("  errors %s: dX %.2e logits %.2e dW %.2e dV %.2e\n", what, dx_error.error(),
              logits_error.error(), in_error.error(), out_error.error());
  EXPECT_LE(dx_error.error(), 5e-3);
  EXPECT_LE(logits_error.error(), 5e-3);
  EXPECT_LE(in_error.error(), 5e-3);
  EXPECT_LE(out_error.error(), 5e-3);
}

/// The forward's kernel, with and without keeping z.
class TimedForward {
 public:
  TimedForward(const test::StripsBatch& batch, const test::StripsGradients& gradients, StaircaseSums kind)
      : batch_(batch),
        gradients_(gradients),
        sums_(cuda::staircase_sums_bytes(batch.shape, kind)),
        exponents_(batch.shape.num_tokens),
        bound_(1),
        output_{.kind = kind, .sums = sums_.get(), .exponents = exponents_.get()} {
    cuda::launch_expert_bound(batch.shape, batch.weights, bound_.get(), nullptr);
  }
  void clear() const {
    cuda::launch_staircase_prepare(batch_.shape, batch_.x, bound_.get(), gradients_.strips(), output_,
                                   nullptr);
  }
  void run(bool keeps_z) const {
    if (keeps_z) {
      cuda::launch_strips_forward(batch_.shape, batch_.x, batch_.weights, gradients_.strips(),
                                  gradients_.pairs(), output_, nullptr);
    } else {
      cuda::launch_experts_staircase(batch_.shape, batch_.x, batch_.weights, gradients_.strips(), output_,
                                     nullptr);
    }
  }

 private:
  const test::StripsBatch& batch_;
  const test::StripsGradients& gradients_;
  cuda::DeviceBuffer<std::byte> sums_;
  cuda::DeviceBuffer<std::int32_t> exponents_;
  cuda::DeviceBuffer<float> bound_;
  cuda::StaircaseOutput output_;
};

void time_case(const TimedCase& c, const Weights& weights, const ColdTimer& timer) {
  const LayerShape& shape = c.shape;
  const std::vector<float> x = random_rows(shape.num_tokens, shape.hidden_size, 1, 3);
  const std::vector<float> dy = random_rows(shape.num_tokens, shape.hidden_size, 0.1, 4);
  const auto device_x = test::to_device(x, Dtype::kBF16);
  const auto device_dy = test::to_device(dy, Dtype::kBF16);
  const std::int64_t both = shape.grid_rows + shape.grid_cols;
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> logits(static_cast<std::size_t>(shape.num_tokens * both));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = c.pattern == Pattern::kSame && i >= static_cast<std::size_t>(both)
                    ? logits[i - static_cast<std::size_t>(both)]
                    : normal(random);
  }
  const auto device_logits = test::to_device(logits);
  const cuda::StripBuffers buffers(shape, c.rule, kStripTileTokens);
  const auto bad = test::to_device(std::vector<std::int64_t>{-1});
  cuda::launch_router_select_strips(shape, c.rule, reinterpret_cast<const float*>(device_logits.get()),
                                    buffers.view(), reinterpret_cast<std::int64_t*>(bad.get()), nullptr);
  cuda::launch_schedule_strips(shape, c.rule, kStripTileTokens, buffers.view(), nullptr);
  const cuda::HostStrips host = buffers.download(nullptr);
  const test::StripsBatch batch{.shape = shape,
                                .rule = c.rule,
                                .x = device_x.get(),
                                .dy = device_dy.get(),
                                .weights = weights.view(),
                                .strips = buffers.view()};
  std::printf("L %ld K %ld %s %s dW %s: %d entries, %d tiles\n", static_cast<long>(shape.num_tokens),
              static_cast<long>(shape.top_k), c.rule == StripRule::kRowsOnly ? "rows" : "cover",
              c.pattern == Pattern::kSame ? "all alike" : "gaussian",
              c.gradients == Dtype::kBF16 ? "bf16" : "fp32", host.counts[0], host.counts[1]);
  for (const StaircaseSums sums : {StaircaseSums::kFp16, StaircaseSums::kFixedPoint}) {
    const test::StripsGradients got(batch, host.counts[0], host.counts[1], sums, c.gradients);
    const char* const kind = sums == StaircaseSums::kFp16 ? "fp16" : "fixed";
    got.run();
    print_errors(c, weights, x, dy, host, got, kind);
    const auto nothing = [] {};
    const TimedForward forward(batch, got, sums);
    const float plain = timer.median([&] { forward.clear(); }, [&] { forward.run(false); });
    const float kept = timer.median([&] { forward.clear(); }, [&] { forward.run(true); });
    const float order = timer.median(nothing, [&] { got.order(); });
    const float prepare = timer.median(nothing, [&] { got.prepare(); });
    const float scores = timer.median([&] { got.prepare(); }, [&] { got.scores(); });
    const float dgrad = timer.median([&] { got.prepare(); }, [&] { got.dgrad(); });
    const float finish = timer.median(nothing, [&] { got.finish(); });
    const float select = timer.median(nothing, [&] { got.select_backward(); });
    const float wgrad = timer.median(nothing, [&] { got.wgrad(); });
    const float saved = timer.median(nothing, [&] {
      got.prepare();
      got.dgrad();
      got.finish();
      got.select_backward();
      got.wgrad();
    });
    const float again = timer.median(nothing, [&] {
      got.order();
      got.prepare();
      got.scores();
      got.dgrad();
      got.finish();
      got.select_backward();
      got.wgrad();
    });
    std::printf(
        "  %-5s forward %.4f keeping z %.4f | order %.4f prepare %.4f scores %.4f dgrad %.4f finish %.4f "
        "select %.4f wgrad %.4f | z "
        "saved %.4f, z again %.4f ms\n",
        kind, static_cast<double>(plain), static_cast<double>(kept), static_cast<double>(order),
        static_cast<double>(prepare), static_cast<double>(scores), static_cast<double>(dgrad),
        static_cast<double>(finish), static_cast<double>(select), static_cast<double>(wgrad),
        static_cast<double>(saved), static_cast<double>(again));
    std::fflush(stdout);
  }
}

TEST(DISABLED_StripsBackwardTimes, AtTheShapesOfThePerformancePage) {
  NEEDS_STAIRCASE_KERNEL();
  const auto shape = [](std::int64_t tokens, std::int64_t top_k) {
    return bf16(make_shape(tokens, 1024, 320, 320, top_k));
  };
  const Weights weights(shape(1, 1));
  const ColdTimer timer;
  time_case({shape(4096, 512)}, weights, timer);
  time_case({shape(1024, 512)}, weights, timer);
  time_case({shape(1024, 512), StripRule::kRowsOnly}, weights, timer);
  time_case({shape(1024, 4096)}, weights, timer);
  time_case({shape(64, 512)}, weights, timer);
  time_case({shape(4096, 512), StripRule::kMinimalCover, Pattern::kGaussian, Dtype::kF32}, weights, timer);
  time_case({shape(4096, 512), StripRule::kMinimalCover, Pattern::kSame}, weights, timer);
  time_case({shape(16384, 512)}, weights, timer);
}

}  // namespace
}  // namespace moescope
