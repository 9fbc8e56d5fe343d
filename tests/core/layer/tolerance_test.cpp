// Tolerances against the errors they are derived for, and the comparison itself.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "core/workload/philox.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

TEST(RelativeErrorTolerance, StaysBelowTheFloorOnQuality) {
  for (std::int64_t length = 1; length <= (std::int64_t{1} << 40); length *= 2) {
    EXPECT_LE(relative_error_tolerance(Dtype::kBF16, length), 4e-3);
    EXPECT_LE(relative_error_tolerance(Dtype::kF32, length), 1e-5);
    EXPECT_GT(relative_error_tolerance(Dtype::kF32, length), 0);
  }
}

TEST(RelativeErrorTolerance, GrowsWithTheReductionAndIsFarTighterInFp32) {
  EXPECT_LT(relative_error_tolerance(Dtype::kF32, 8), relative_error_tolerance(Dtype::kF32, 1024));
  EXPECT_LE(relative_error_tolerance(Dtype::kBF16, 8), relative_error_tolerance(Dtype::kBF16, 1024));
  EXPECT_LT(100 * relative_error_tolerance(Dtype::kF32, 1024), relative_error_tolerance(Dtype::kBF16, 1024));
}

TEST(RelativeErrorTolerance, RefusesAnEmptyReduction) {
  EXPECT_THROW(relative_error_tolerance(Dtype::kF32, 0), InvalidArgument);
}

/// Relative Frobenius error of rounding to bf16 `times` times, each time with fresh mantissas.
double rounding_error(int times, std::uint64_t seed) {
  const Philox random(seed, 0);
  double errors = 0;
  double squares = 0;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    double value = test::normal(random, i);
    squares += value * value;
    double relative = 0;
    for (int round = 0; round < times; ++round) {
      const auto sample =
          static_cast<float>(test::normal(random, 100000 * (static_cast<std::uint64_t>(round) + 1) + i));
      relative += (round_to(Dtype::kBF16, sample) - sample) / sample;
    }
    errors += value * relative * value * relative;
  }
  return std::sqrt(errors / squares);
}

TEST(RelativeErrorTolerance, CoversThreeRoundingsToBf16ButNotSeven) {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    EXPECT_NEAR(rounding_error(1, seed), 0.425 * 0x1p-8, 0.1e-3);
    EXPECT_LT(rounding_error(3, seed), relative_error_tolerance(Dtype::kBF16, 1024));
    EXPECT_GT(rounding_error(7, seed), relative_error_tolerance(Dtype::kBF16, 1024));
  }
}

/// Error of fp32 dot products of length n against fp64, relative to their root mean square.
double dot_error(std::size_t length, std::uint64_t seed) {
  const Philox random(seed, 1);
  double errors = 0;
  double squares = 0;
  for (std::uint64_t sample = 0; sample < 50; ++sample) {
    float sum = 0;
    double exact = 0;
    for (std::size_t k = 0; k < length; ++k) {
      const auto x = static_cast<float>(test::normal(random, 2 * (sample * length + k)));
      const auto w = static_cast<float>(test::normal(random, 2 * (sample * length + k) + 1));
      sum += x * w;
      exact += static_cast<double>(x) * w;
    }
    errors += (sum - exact) * (sum - exact);
    squares += exact * exact;
  }
  return std::sqrt(errors / squares);
}

TEST(RelativeErrorTolerance, CoversSequentialAccumulationInFp32) {
  for (const std::size_t length : {8U, 64U, 1024U, 4096U}) {
    const double error = dot_error(length, length);
    EXPECT_LT(3 * error, relative_error_tolerance(Dtype::kF32, static_cast<std::int64_t>(length)));
    EXPECT_GT(error, 0);
  }
}

TEST(SelectionTolerance, CoversDotProductErrorsAndScalesWithThem) {
  for (const std::size_t length : {8U, 64U, 1024U}) {
    const double typical_sum = std::sqrt(static_cast<double>(length));
    const double bound = selection_tolerance(static_cast<std::int64_t>(length), 2 * typical_sum, typical_sum);
    EXPECT_LT(dot_error(length, 7) * typical_sum, bound);
    EXPECT_LT(bound, 1e-3 * typical_sum);
  }
  EXPECT_DOUBLE_EQ(selection_tolerance(64, 2, 4), 2 * selection_tolerance(64, 1, 2));
}

struct Example {
  std::vector<double> reference = {1, -2, 3, 4, -5, 6};
  HostTensor out = HostTensor(Dtype::kF32, 2, 3);
  MatrixView<const double> view() const { return {reference.data(), 2, 3}; }
  Example() {
    for (std::size_t i = 0; i < reference.size(); ++i) out.f32().data[i] = static_cast<float>(reference[i]);
  }
};

TEST(Compare, ReportsErrorAndPlaceOfTheWorst) {
  Example example;
  EXPECT_EQ(compare(example.out, example.view()).relative_error, 0);
  example.out.f32().row(1)[2] = 6.5F;
  example.out.f32().row(0)[0] = 1.25F;
  const auto report = compare(example.out, example.view());
  EXPECT_NEAR(report.relative_error, std::sqrt((0.25 + 0.0625) / 91.0), 1e-12);
  EXPECT_DOUBLE_EQ(report.max_absolute_error, 0.5);
  EXPECT_DOUBLE_EQ(report.mean_absolute_error, 0.75 / 6);
  EXPECT_DOUBLE_EQ(report.reference_rms, std::sqrt(91.0 / 6));
  EXPECT_EQ(report.worst_row, 1);
  EXPECT_EQ(report.worst_col, 2);
  EXPECT_EQ(report.describe(), "relative error 0.0586 (max 0.5 at [1,2]: 6.5 against 6; mean 0.125)");
}

TEST(Compare, NanAndInfinityNeverPass) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Example example;
    example.out.f32().row(0)[1] = bad;
    example.out.f32().row(1)[0] = 1000;
    const auto report = compare(example.out, example.view());
    EXPECT_EQ(report.relative_error, std::numeric_limits<double>::infinity());
    EXPECT_EQ(report.worst_row, 0);
    EXPECT_EQ(report.worst_col, 1);
  }
  Example example;
  example.reference[3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(compare(example.out, example.view()).relative_error, std::numeric_limits<double>::infinity());
  example.reference[3] = std::numeric_limits<double>::infinity();
  EXPECT_EQ(compare(example.out, example.view()).relative_error, std::numeric_limits<double>::infinity());
}

TEST(Compare, RefusesOtherExtentsAndZeroReferences) {
  const Example example;
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { compare(HostTensor::zeros(Dtype::kF32, 3, 2), example.view()); }),
            "out = [3, 2]: must be [2, 3] like the reference");
  const std::vector<double> zeros(6, 0.0);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              compare(example.out, {zeros.data(), 2, 3});
            }),
            "reference = 0: is zero everywhere: no test data, any relative error would do");
}

TEST(Compare, ReadsBf16Storage) {
  const Example example;
  EXPECT_EQ(compare(example.out.to(Dtype::kBF16), example.view()).relative_error, 0);
}

}  // namespace
}  // namespace moescope
