// The backward on strips against plain fp64 loops.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "tests/support/device_strips_gradients.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/strip_batches.hpp"
#include "tests/support/strips_gradients.hpp"

namespace moescope {
namespace {

using cuda::StaircaseSums;
using test::bf16;
using test::ErrorSum;
using test::ExpertCase;
using test::Logits;
using test::make_shape;
using test::StaircaseCase;

struct Gradients {
  std::vector<float> dx, logits, w_in, w_out;
  bool operator==(const Gradients&) const = default;
};

class StripsBackward {
 public:
  explicit StripsBackward(const StaircaseCase& c)
      : rule_(c.rule),
        strips_(test::make_host_strips(c.shape, make_logits(c, c.shape.grid_rows, 1),
                                       make_logits(c, c.shape.grid_cols, 2), c.rule, c.tile_tokens)),
        case_(make_case(c, strips_.routing)),
        experts_(case_) {
    const Philox random(5, 77);
    for (std::size_t i = 0; i < case_.x.size(); ++i) {
      dy_.push_back(round_to(Dtype::kBF16, static_cast<float>(0.1 * test::normal(random, i))));
    }
    device_dy_ = test::to_device(dy_, Dtype::kBF16);
  }

  const LayerShape& shape() const { return case_.shape; }
  const test::HostStrips& strips() const { return strips_; }
  test::GradientInputs inputs() const {
    return {case_.shape, case_.routing, case_.x, dy_, case_.w_in, case_.w_out};
  }
  std::int64_t max_cover() const { return max_strips_of_token(case_.shape, rule_); }

  /// With every strip's tokens in an order that `seed` draws, in memory that was poisoned before.
  template <class Use>
  auto with(StaircaseSums sums, Dtype dtype, unsigned seed, const Use& use) const {
    test::HostStrips shuffled = strips_;
    std::mt19937 random(seed);
    for (std::size_t strip = 0; strip + 1 < shuffled.strip_offsets.size(); ++strip) {
      std::shuffle(shuffled.strip_tokens.begin() + shuffled.strip_offsets[strip],
                   shuffled.strip_tokens.begin() + shuffled.strip_offsets[strip + 1], random);
    }
    const test::UploadedStrips uploaded(shuffled, max_cover());
    const test::StripsGradients gradients({.shape = case_.shape,
                                           .rule = rule_,
                                           .x = experts_.x(),
                                           .dy = device_dy_.get(),
                                           .weights = experts_.weights(),
                                           .strips = uploaded.view()},
                                          std::ssize(strips_.strip_tokens), std::ssize(strips_.tiles), sums,
                                          dtype);
    return use(gradients);
  }
  Gradients run(StaircaseSums sums, Dtype dtype = Dtype::kBF16, unsigned seed = 1) const {
    return with(sums, dtype, seed, [](const test::StripsGradients& gradients) {
      gradients.run();
      return Gradients{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
    });
  }

 private:
  static ExpertCase make_case(const StaircaseCase& c, const Routing& routing) {
    LayerShape shape = c.shape;
    shape.top_k = 1;  // a stand-in: the routing comes from the strips
    ExpertCase result = ExpertCase::make({shape, test::RoutingSkew::kSameExperts}, 5);
    result.shape = c.shape;
    result.routing = routing;
    return result;
  }

  StripRule rule_;
  test::HostStrips strips_;
  ExpertCase case_;
  test::DeviceExperts experts_;
  std::vector<float> dy_;
  cuda::DeviceBuffer<std::byte> device_dy_;
};

/// Every gradient by fp64, once a case.
struct Reference {
  std::vector<double> dx, logits, terms, w_in, w_out;

  explicit Reference(const StripsBackward& c) {
    const test::GradientInputs in = c.inputs();
    const std::int64_t d = in.shape.hidden_size;
    w_in.resize(static_cast<std::size_t>(in.shape.num_experts() * d));
    w_out.resize(w_in.size());
    for (std::int64_t token = 0; token < in.shape.num_tokens; ++token) {
      const test::TokenReference own =
          test::reference_token(in, token, c.strips().row_log_probs, c.strips().col_log_probs);
      dx.insert(dx.end(), own.dx.begin(), own.dx.end());
      logits.insert(logits.end(), own.logits.begin(), own.logits.end());
      terms.insert(terms.end(), own.terms.begin(), own.terms.end());
      const auto at = static_cast<std::size_t>(token);
      for (std::int64_t pair = in.routing.token_offsets[at]; pair < in.routing.token_offsets[at + 1];
           ++pair) {
        const test::PairReference values = test::reference_pair(in, token, pair);
        const std::int64_t expert = in.routing.expert_ids[static_cast<std::size_t>(pair)];
        for (std::int64_t k = 0; k < d; ++k) {
          const auto to = static_cast<std::size_t>(expert * d + k);
          const auto from = static_cast<std::size_t>(token * d + k);
          w_in[to] += values.q * static_cast<double>(in.x[from]);
          w_out[to] += values.p * static_cast<double>(in.dy[from]);
        }
      }
    }
  }
};

double error_of(const std::vector<float>& values, const std::vector<double>& reference,
                const std::vector<double>& scale) {
  EXPECT_EQ(values.size(), reference.size());
  ErrorSum sum;
  for (std::size_t i = 0; i < values.size(); ++i) {
    sum.add(static_cast<double>(values[i]), reference[i], scale[i]);
  }
  return sum.error();
}

void expect_near(const Gradients& got, const Reference& reference, double most, const char* what) {
  const double dx = error_of(got.dx, reference.dx, reference.dx);
  const double logits = error_of(got.logits, reference.logits, reference.terms);
  const double w_in = error_of(got.w_in, reference.w_in, reference.w_in);
  const double w_out = error_of(got.w_out, reference.w_out, reference.w_out);
  EXPECT_LE(dx, most) << what << ": dX";
  EXPECT_LE(logits, most) << what << ": logits";
  EXPECT_LE(w_in, most) << what << ": dW";
  EXPECT_LE(w_out, most) << what << ": dV";
  for (std::size_t i = 0; i < got.w_in.size(); ++i) {
    if (reference.w_in[i] == 0 && reference.w_out[i] == 0) {
      ASSERT_EQ(got.w_in[i], 0) << what << ": dW of an expert without pairs";
      ASSERT_EQ(got.w_out[i], 0) << what << ": dV of an expert without pairs";
    }
  }
}

/// Roundings of p, q and h weigh more where they do not average.
double tolerance(const LayerShape& shape) { return shape.num_pairs() < 256 ? 8e-3 : 5e-3; }

void expect_as_plain_loops(const StaircaseCase& c) {
  SCOPED_TRACE(c.shape.label() + " logits " + std::to_string(static_cast<int>(c.logits)) + " rule " +
               std::to_string(static_cast<int>(c.rule)));
  const StripsBackward backward(c);
  const Reference reference(backward);
  const double most = tolerance(c.shape);
  const Gradients fixed = backward.run(StaircaseSums::kFixedPoint);
  expect_near(fixed, reference, most, "fixed point");
  Gradients fast = backward.run(StaircaseSums::kFp16, Dtype::kBF16, 2);
  expect_near(fast, reference, most, "fp16");
  expect_near(backward.run(StaircaseSums::kFixedPoint, Dtype::kF32), reference, most, "fp32 gradients");
  // The order in which a selection lists tokens changes nothing but fp16's sums.
  EXPECT_TRUE(backward.run(StaircaseSums::kFixedPoint, Dtype::kBF16, 3) == fixed);
  fast.dx = fixed.dx;
  EXPECT_TRUE(fast == fixed);
}

// Small enough for compute-sanitizer's tools.
TEST(StripsBackward, EqualsThePlainLoopOnASmallGrid) {
  NEEDS_STAIRCASE_KERNEL();
  expect_as_plain_loops({bf16(make_shape(40, 136, 12, 20, 24))});
}

TEST(StripsBackward, EqualsThePlainLoopOnAwkwardShapes) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StaircaseCase& c : test::awkward_cases()) {
    expect_as_plain_loops(c);
  }
}

TEST(StripsBackward, EqualsThePlainLoopUnderEverySkew) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StaircaseCase& c : test::skew_cases()) {
    expect_as_plain_loops(c);
  }
}

TEST(StripsBackward, EqualsThePlainLoopForEveryActivationAndGate) {
  NEEDS_STAIRCASE_KERNEL();
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    for (const GateMode gates : {GateMode::kSoftmax, GateMode::kProbability}) {
      for (const std::int64_t side : {40, 150, 250, 300}) {
        expect_as_plain_loops({bf16(make_shape(140, 64, side, side - 7, 60), activation, gates)});
      }
    }
  }
}

TEST(StripsBackward, GatesFarBelowOneKeepTheirResolution) {
  NEEDS_STAIRCASE_KERNEL();
  expect_as_plain_loops(
      {bf16(make_shape(20, 64, 400, 400, 40), Activation::kGelu, GateMode::kProbability), Logits::kFlat});
}

TEST(StripsBackward, LongStripsAreTakenInSegments) {
  NEEDS_STAIRCASE_KERNEL();
  expect_as_plain_loops({bf16(make_shape(150, 40, 1000, 20, 90))});
  expect_as_plain_loops({bf16(make_shape(150, 40, 20, 1001, 300), Activation::kGelu)});
}

// Every number of tokens modulo tiles, slots and groups, all in one strip.
TEST(StripsBackward, StripsOfAnyLengthEqualThePlainLoop) {
  NEEDS_STAIRCASE_KERNEL();
  for (const std::int64_t tokens : {15, 16, 17, 31, 33, 64, 65, 127, 129, 193, 257, 400}) {
    expect_as_plain_loops({bf16(make_shape(tokens, 72, 1, 48, 5))});
    expect_as_plain_loops({bf16(make_shape(tokens, 136, 48, 3, 5)), Logits::kOneStrip});
  }
}

TEST(StripsBackward, SmallTilesEqualThePlainLoop) {
  NEEDS_STAIRCASE_KERNEL();
  for (const std::int64_t tile : {1, 63, 65}) {
    expect_as_plain_loops(
        {bf16(make_shape(300, 104, 40, 90, 33)), Logits::kGaussian, StripRule::kMinimalCover, tile});
  }
}

TEST(StripsBackward, TokensAreOrderedAndEntriesFound) {
  NEEDS_STAIRCASE_KERNEL();
  // Past 131072 tokens a strip's ranks take a second window.
  for (const LayerShape& shape :
       {bf16(make_shape(500, 8, 16, 24, 20)), bf16(make_shape(140000, 8, 2, 2, 1))}) {
    const StripsBackward backward({shape, Logits::kHot});
    const test::HostStrips& host = backward.strips();
    backward.with(StaircaseSums::kFp16, Dtype::kBF16, 9, [&](const test::StripsGradients& gradients) {
      gradients.order();
      EXPECT_EQ(gradients.ordered_tokens(), host.strip_tokens);
      const std::vector<std::int32_t> entries = gradients.ordered_entries();
      for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
        const auto& cover = host.covers[static_cast<std::size_t>(token)];
        for (std::size_t e = 0; e < cover.size(); ++e) {
          const auto entry =
              static_cast<std::size_t>(entries[static_cast<std::size_t>(token * backward.max_cover()) + e]);
          const auto strip = static_cast<std::size_t>(cover[e]);
          ASSERT_GE(entry, static_cast<std::size_t>(host.strip_offsets[strip]));
          ASSERT_LT(entry, static_cast<std::size_t>(host.strip_offsets[strip + 1]));
          ASSERT_EQ(host.strip_tokens[entry], token);
        }
      }
    });
  }
}

TEST(StripsBackward, GradientsAreAddedWhereAsked) {
  NEEDS_STAIRCASE_KERNEL();
  const StripsBackward backward({bf16(make_shape(90, 136, 40, 90, 25))});
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
    const Gradients once = backward.run(StaircaseSums::kFixedPoint, dtype);
    const Gradients twice =
        backward.with(StaircaseSums::kFixedPoint, dtype, 1, [](const test::StripsGradients& gradients) {
          gradients.run();
          gradients.wgrad(true);
          gradients.finish(true);
          return Gradients{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
        });
    ErrorSum sum;
    for (std::size_t i = 0; i < once.w_in.size(); ++i) {
      sum.add(static_cast<double>(twice.w_in[i]), 2 * static_cast<double>(once.w_in[i]));
      sum.add(static_cast<double>(twice.w_out[i]), 2 * static_cast<double>(once.w_out[i]));
    }
    EXPECT_LE(sum.error(), dtype == Dtype::kBF16 ? 4e-3 : 1e-6);
    for (std::size_t i = 0; i < once.dx.size(); ++i) ASSERT_EQ(twice.dx[i], 2 * once.dx[i]);
  }
}

TEST(StripsBackward, RunsAgainOnTheSameMemory) {
  NEEDS_STAIRCASE_KERNEL();
  const StripsBackward backward({bf16(make_shape(300, 200, 100, 64, 48)), Logits::kPopular});
  backward.with(StaircaseSums::kFixedPoint, Dtype::kBF16, 4, [](const test::StripsGradients& gradients) {
    gradients.run();
    const Gradients first{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
    for (int i = 0; i < 20; ++i) {
      gradients.run();
      const Gradients again{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
      EXPECT_TRUE(again == first) << i;
    }
  });
}

// z that the forward keeps is z computed again, and keeping it changes nothing of the forward.
TEST(StripsBackward, ForwardKeepsScores) {
  NEEDS_STAIRCASE_KERNEL();
  for (const LayerShape& shape :
       {bf16(make_shape(300, 200, 100, 64, 48)), bf16(make_shape(90, 72, 444, 90, 150), Activation::kGelu),
        bf16(make_shape(70, 40, 256, 250, 60), Activation::kRelu), bf16(make_shape(200, 64, 320, 310, 99))}) {
    const StripsBackward backward({shape});
    backward.with(StaircaseSums::kFixedPoint, Dtype::kBF16, 4, [](const test::StripsGradients& gradients) {
      gradients.run();
      const Gradients again{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
      gradients.forget_scores();
      EXPECT_TRUE(gradients.forward(true) == gradients.forward(false));
      gradients.prepare();
      gradients.dgrad();
      gradients.finish();
      gradients.select_backward();
      gradients.wgrad();
      const Gradients kept{gradients.dx(), gradients.logits(), gradients.w_in(), gradients.w_out()};
      EXPECT_TRUE(kept == again);
    });
  }
}

TEST(StripsBackward, LoadsAndLogSumsAreThoseOfTheSelection) {
  NEEDS_STAIRCASE_KERNEL();
  for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
    const StaircaseCase c{bf16(make_shape(77, 8, 20, 33, 30)), Logits::kTies, rule};
    const StripsBackward backward(c);
    const std::int64_t rows = c.shape.grid_rows;
    const std::int64_t cols = c.shape.grid_cols;
    const test::UploadedStrips uploaded(backward.strips(), backward.max_cover());
    const auto loads = test::to_device(std::vector<std::int32_t>(static_cast<std::size_t>(rows * cols), 5));
    cuda::launch_strips_loads(c.shape, rule, uploaded.view(), reinterpret_cast<std::int32_t*>(loads.get()),
                              nullptr);
    std::vector<std::int32_t> expected(static_cast<std::size_t>(rows * cols), 5);
    for (const std::int32_t id : backward.strips().routing.expert_ids)
      ++expected[static_cast<std::size_t>(id)];
    EXPECT_EQ(test::from_device<std::int32_t>(loads), expected);

    const std::vector<float> row = make_logits(c, rows, 1);
    const std::vector<float> col = make_logits(c, cols, 2);
    std::vector<float> logits;
    for (std::int64_t token = 0; token < c.shape.num_tokens; ++token) {
      logits.insert(logits.end(), row.begin() + token * rows, row.begin() + (token + 1) * rows);
      logits.insert(logits.end(), col.begin() + token * cols, col.begin() + (token + 1) * cols);
    }
    const auto device = test::to_device(logits);
    const cuda::DeviceBuffer<std::byte> lse(2 * c.shape.num_tokens * 4);
    cuda::launch_strips_log_sums(c.shape, reinterpret_cast<const float*>(device.get()), uploaded.view(),
                                 reinterpret_cast<float*>(lse.get()), nullptr);
    const std::vector<float> sums = test::from_device<float>(lse);
    for (std::int64_t token = 0; token < c.shape.num_tokens; ++token) {
      double sum = 0;
      for (std::int64_t i = 0; i < cols; ++i) sum += std::exp(static_cast<double>(col[token * cols + i]));
      EXPECT_NEAR(sums[c.shape.num_tokens + token], std::log(sum), 2e-6);
    }
  }
}

TEST(StripsBackwardHost, WhatItTakesIsSaid) {
  LayerShape shape = bf16(make_shape(4, 16, 4, 4, 2));
  shape.hidden_size = 12;
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { cuda::launch_strips_dgrad(shape, nullptr, {}, {}, {}, {}, nullptr); }),
            "hidden_size = 12: must be a multiple of 8 on the GPU");
  shape.dtype = Dtype::kF32;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              cuda::launch_strips_wgrad(shape, StripRule::kMinimalCover, nullptr, nullptr, {}, {}, {},
                                        nullptr);
            }),
            "dtype = fp32: the backward on strips takes bf16");
}

TEST(StripsBackwardHost, LayoutHoldsEveryStrip) {
  const auto layout = cuda::strips_pairs_layout(bf16(make_shape(4, 16, 444, 90, 2)), 100, 7);
  EXPECT_GE(layout.pitch, 444);
  EXPECT_EQ(layout.pitch % 64, 0);
  EXPECT_EQ(layout.row_bytes, 100 * layout.pitch * 2);
  EXPECT_EQ(layout.sum_bytes, 100 * layout.segments * 4);
}

}  // namespace
}  // namespace moescope
