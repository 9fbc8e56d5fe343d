#include "core/workload/deterministic_math.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace moescope {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// Distance in units in the last place; both finite and of one sign.
std::int64_t ulp_distance(double a, double b) {
  return std::abs(std::bit_cast<std::int64_t>(a) - std::bit_cast<std::int64_t>(b));
}

TEST(DeterministicMath, LogIsWithinTwoUlpOfTheLibrarysOverTheWholeRange) {
  const Philox philox(1, 0);
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const double u = philox.uniform(i);
    const double x = i % 3 == 0 ? u : i % 3 == 1 ? 0.5 + u : std::ldexp(u, static_cast<int>(i % 2000) - 1000);
    ASSERT_LE(ulp_distance(deterministic_log(x), std::log(x)), 2) << "x = " << x;
  }
  EXPECT_LE(ulp_distance(deterministic_log(5e-324), std::log(5e-324)), 2);
}

TEST(DeterministicMath, LogOfSpecialValues) {
  EXPECT_EQ(deterministic_log(1), 0);
  EXPECT_EQ(deterministic_log(0), -kInfinity);
  EXPECT_EQ(deterministic_log(kInfinity), kInfinity);
  EXPECT_TRUE(std::isnan(deterministic_log(-1)));
  EXPECT_TRUE(std::isnan(deterministic_log(std::nan(""))));
}

TEST(DeterministicMath, ExpIsWithinTwoUlpOfTheLibrarysWhereTheResultIsNormal) {
  const Philox philox(2, 0);
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const double u = philox.uniform(i) - 0.5;
    const double x = i % 2 == 0 ? u * 1416 : u * 4;
    ASSERT_LE(ulp_distance(deterministic_exp(x), std::exp(x)), 2) << "x = " << x;
  }
}

TEST(DeterministicMath, ExpOfSpecialValues) {
  EXPECT_EQ(deterministic_exp(0), 1);
  EXPECT_EQ(deterministic_exp(710), kInfinity);
  EXPECT_EQ(deterministic_exp(-746), 0);
  EXPECT_EQ(deterministic_exp(-kInfinity), 0);
  EXPECT_EQ(deterministic_exp(kInfinity), kInfinity);
  EXPECT_GT(deterministic_exp(-740), 0);  // subnormal
  EXPECT_TRUE(std::isnan(deterministic_exp(std::nan(""))));
}

TEST(DeterministicMath, NormalQuantileGivesTabulatedValues) {
  // To 16 digits, from Wichura's test values and standard tables.
  EXPECT_NEAR(normal_quantile(0.25), -0.6744897501960817, 1e-15);
  EXPECT_NEAR(normal_quantile(0.001), -3.090232306167814, 4e-15);
  EXPECT_NEAR(normal_quantile(1e-20), -9.262340089798408, 1e-14);
  EXPECT_NEAR(normal_quantile(0.975), 1.959963984540054, 2e-15);
  EXPECT_EQ(normal_quantile(0.5), 0);
  EXPECT_EQ(normal_quantile(0), -kInfinity);
  EXPECT_EQ(normal_quantile(1), kInfinity);
  EXPECT_TRUE(std::isnan(normal_quantile(-0.1)));
  EXPECT_TRUE(std::isnan(normal_quantile(std::nan(""))));
}

TEST(DeterministicMath, NormalQuantileInvertsTheDistributionFunction) {
  const Philox philox(3, 0);
  for (std::uint64_t i = 0; i < 100000; ++i) {
    const double p =
        i % 2 == 0 ? philox.uniform(i) : std::ldexp(philox.uniform(i), -static_cast<int>(i % 60));
    const double x = normal_quantile(p);
    // The distribution function magnifies an error of x by at most |x| + 1 in relative terms (below the
    // median); erfc itself is good to a few ulp.
    const double back = std::erfc(-x / std::sqrt(2.0)) / 2;
    ASSERT_NEAR(back / p, 1, 2e-15 * (1 + x * x)) << "p = " << p;
  }
}

TEST(DeterministicMath, NormalsDoNotDependOnWhereABatchStarts) {
  std::vector<double> all(5000);
  standard_normals(9, RandomStream::kExpertIn, 0, all);
  for (const std::size_t first : {0U, 1U, 3U, 1023U, 1025U, 2047U}) {
    std::vector<double> some(2500);
    standard_normals(9, RandomStream::kExpertIn, first, some);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + static_cast<std::ptrdiff_t>(first)))
        << first;
  }
}

TEST(DeterministicMath, NormalsFollowTheirWordsOfTheStream) {
  std::vector<double> normals(64);
  standard_normals(5, RandomStream::kHiddenStates, 100, normals);
  const Philox philox(5, static_cast<std::uint32_t>(RandomStream::kHiddenStates));
  for (std::uint64_t i = 0; i < normals.size(); ++i) {
    const double word = philox.block((100 + i) / 4)[(100 + i) % 4];
    EXPECT_DOUBLE_EQ(normals[i], normal_quantile((word + 0.5) * 0x1.0p-32));
  }
}

TEST(DeterministicMath, NormalsHaveTheMomentsOfTheStandardNormal) {
  std::vector<double> normals(1 << 20);
  standard_normals(4, RandomStream::kExpertOut, 0, normals);
  std::array<double, 4> moments{};
  for (const double z : normals) {
    double power = 1;
    for (double& moment : moments) {
      power *= z;
      moment += power;
    }
  }
  // Five standard deviations of each mean: sqrt(var(z^k) / n), var = 1, 2, 15, 96.
  const std::array<double, 4> expected = {0, 1, 0, 3};
  const std::array<double, 4> variance = {1, 2, 15, 96};
  for (std::size_t k = 0; k < 4; ++k) {
    EXPECT_NEAR(moments[k] / 1048576.0, expected[k], 5 * std::sqrt(variance[k]) / 1024) << "moment " << k + 1;
  }
}

TEST(DeterministicMath, FillRoundsTheScaledNormalsToStorage) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    HostTensor tensor(dtype, 37, 61);  // more than one chunk, a multiple of none
    fill_normal(tensor, 0.25, 11, RandomStream::kRouterRow);
    std::vector<double> normals(static_cast<std::size_t>(tensor.size()));
    standard_normals(11, RandomStream::kRouterRow, 0, normals);
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      const auto expected = static_cast<float>(0.25 * normals[static_cast<std::size_t>(i)]);
      ASSERT_EQ(tensor.at(i / 61, i % 61), round_to(dtype, expected)) << i;
    }
  }
}

TEST(DeterministicMath, PermutationHoldsEveryIndexOnceAndIsNotTheIdentity) {
  for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
    auto order = random_permutation(count, 21, RandomStream::kRowRanks);
    if (count > 2) {
      EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
    }
    std::sort(order.begin(), order.end());
    for (std::int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(order[static_cast<std::size_t>(i)], i);
    }
  }
}

}  // namespace
}  // namespace moescope
