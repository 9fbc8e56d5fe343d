#include "core/layer/dtype.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

TEST(Dtype, NamesRoundTripAndUnknownOnesAreRefused) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    EXPECT_EQ(parse_dtype(to_string(dtype)), dtype);
  }
  EXPECT_EQ(test::error_text<InvalidArgument>([] { parse_dtype("fp16"); }),
            "dtype = fp16: must be fp32 or bf16");
}

TEST(Bf16, EveryFiniteAndInfiniteValueSurvivesARoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Bf16 value{static_cast<std::uint16_t>(bits)};
    if (!std::isnan(to_float(value))) {
      ASSERT_EQ(to_bf16(to_float(value)).bits, bits);
    }
  }
}

TEST(Bf16, RoundsToNearest) {
  const Philox philox(1, 0);
  for (std::uint64_t i = 0; i < 100000; ++i) {
    const float value = std::ldexp(static_cast<float>(philox.uniform(i)), static_cast<int>(i % 200) - 100);
    const std::uint16_t bits = to_bf16(value).bits;
    const float error = std::fabs(to_float(Bf16{bits}) - value);
    const auto below = static_cast<std::uint16_t>(bits - 1);
    const auto above = static_cast<std::uint16_t>(bits + 1);
    ASSERT_LE(error, std::fabs(to_float(Bf16{below}) - value)) << value;
    ASSERT_LE(error, std::fabs(to_float(Bf16{above}) - value)) << value;
  }
}

TEST(Bf16, TiesGoToEven) {
  EXPECT_EQ(to_bf16(1 + 0x1p-8F).bits, to_bf16(1).bits);           // between 1 and 1 + 2^-7: 1 is even
  EXPECT_EQ(to_float(to_bf16(1 + 3 * 0x1p-8F)), 1 + 2 * 0x1p-7F);  // between odd and even: up
  EXPECT_EQ(to_bf16(std::nextafter(1 + 0x1p-8F, 2.0F)).bits, to_bf16(1).bits + 1);
  EXPECT_EQ(to_bf16(-1 - 0x1p-8F).bits, to_bf16(-1).bits);
}

TEST(Bf16, KeepsSpecialValues) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(to_float(to_bf16(kInfinity)), kInfinity);
  EXPECT_EQ(to_float(to_bf16(std::numeric_limits<float>::max())), kInfinity);
  EXPECT_EQ(to_float(to_bf16(-std::numeric_limits<float>::max())), -kInfinity);
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001U)))));  // would round to infinity
  EXPECT_TRUE(std::signbit(to_float(to_bf16(-0.0F))));
}

TEST(Dtype, RoundToKeepsFp32AndRoundsBf16) {
  EXPECT_EQ(round_to(Dtype::kF32, 0.1F), 0.1F);
  EXPECT_EQ(round_to(Dtype::kBF16, 0.1F), to_float(to_bf16(0.1F)));
  EXPECT_NE(round_to(Dtype::kBF16, 0.1F), 0.1F);
}

}  // namespace
}  // namespace moescope
