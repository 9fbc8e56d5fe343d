#pragma once

#include <array>
#include <cstdint>

namespace moescope {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11): a counter-based
/// generator. block(counter) depends on (key, counter) alone, so results do not depend on threads or order.
class Philox {
 public:
  /// `stream` separates uses of one seed (weights, tokens, noise).
  constexpr Philox(std::uint64_t seed, std::uint32_t stream) : seed_(seed), stream_(stream) {}

  /// Four 32-bit words for a 64-bit index; counter words are {index_lo, index_hi, stream, 0}.
  constexpr std::array<std::uint32_t, 4> block(std::uint64_t index) const {
    return bijection({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), stream_, 0},
                     {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
  }
  /// Uniform 64-bit word of an index.
  constexpr std::uint64_t bits(std::uint64_t index) const {
    const auto b = block(index);
    return (static_cast<std::uint64_t>(b[1]) << 32) | b[0];
  }
  /// Uniform in (0, 1): (k + 1/2) 2^-52, exact in a double and so never 0 or 1 (with 2^-53 the largest k
  /// would round).
  constexpr double uniform(std::uint64_t index) const {
    return (static_cast<double>(bits(index) >> 12) + 0.5) * 0x1.0p-52;
  }

  /// The ten rounds on a raw counter and key; public for the known-answer test.
  static constexpr std::array<std::uint32_t, 4> bijection(std::array<std::uint32_t, 4> c,
                                                          std::array<std::uint32_t, 2> k) {
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = static_cast<std::uint64_t>(0xD2511F53U) * c[0];
      const std::uint64_t p1 = static_cast<std::uint64_t>(0xCD9E8D57U) * c[2];
      c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k[0], static_cast<std::uint32_t>(p1),
           static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k[1], static_cast<std::uint32_t>(p0)};
      k[0] += 0x9E3779B9U;
      k[1] += 0xBB67AE85U;
    }
    return c;
  }

 private:
  std::uint64_t seed_;
  std::uint32_t stream_;
};

}  // namespace moescope
