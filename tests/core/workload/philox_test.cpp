#include "core/workload/philox.hpp"

#include <gtest/gtest.h>

namespace moescope {
namespace {

using Words = std::array<std::uint32_t, 4>;

// Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
TEST(Philox, GivesTheKnownAnswersOfRandom123) {
  EXPECT_EQ(Philox::bijection({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(Philox::bijection({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox::bijection({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, PutsIndexAndStreamIntoTheCounterAndTheSeedIntoTheKey) {
  const Philox philox(0x1122334455667788, 7);
  EXPECT_EQ(philox.block(0xaabbccdd00000005),
            Philox::bijection({5, 0xaabbccdd, 7, 0}, {0x55667788, 0x11223344}));
}

TEST(Philox, SeparatesSeedsStreamsAndIndices) {
  const Words reference = Philox(1, 1).block(1);
  EXPECT_NE(reference, Philox(2, 1).block(1));
  EXPECT_NE(reference, Philox(1, 2).block(1));
  EXPECT_NE(reference, Philox(1, 1).block(2));
}

TEST(Philox, UniformStaysInsideTheOpenIntervalAndHasTheRightMoments) {
  const Philox philox(3, 0);
  constexpr int kCount = 100000;
  double sum = 0;
  double square = 0;
  for (int i = 0; i < kCount; ++i) {
    const double u = philox.uniform(static_cast<std::uint64_t>(i));
    ASSERT_GT(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    square += u * u;
  }
  // Five standard deviations of the means of u (sqrt(1/12 n)) and of u^2 (sqrt(4/45 n)).
  EXPECT_NEAR(sum / kCount, 1.0 / 2, 5 * 0.2887 / 316.2);
  EXPECT_NEAR(square / kCount, 1.0 / 3, 5 * 0.2981 / 316.2);
}

}  // namespace
}  // namespace moescope
