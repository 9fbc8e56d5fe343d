#include "core/base/worse_error.hpp"

#include <gtest/gtest.h>

#include <limits>

namespace moescope {
namespace {

TEST(WorseError, KeepsWhatIsNoNumber) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(worse_error(1, 2), 2);
  EXPECT_EQ(worse_error(2, 1), 2);
  EXPECT_EQ(worse_error(2, inf), inf);
  for (const double other : {0.0, 1.0, inf, nan}) {
    EXPECT_TRUE(std::isnan(worse_error(other, nan))) << other;
    EXPECT_TRUE(std::isnan(worse_error(nan, other))) << other;
  }
}

}  // namespace
}  // namespace moescope
