#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/schedule/strip_cover.hpp"

namespace moescope {

/// Which strip of the grid computes each pair of a token: a hot one wherever it can, and of what is left the
/// fewest strips. Strips are rows by their index, columns behind them (Nr + index). Goes from token to token
/// without allocating.
class StripPairs {
 public:
  /// Keeps a reference to `routing`.
  explicit StripPairs(const Routing& routing);

  /// `hot`: [Nr + Nc], not 0 for the strips that are to be used first.
  void assign(std::int64_t token, std::span<const char> hot);
  /// Of each pair of the token: its strip.
  std::span<const std::int32_t> strip_of_pair() const { return strip_; }
  /// Distinct strips of the token, in no order.
  std::span<const std::int32_t> strips() const { return distinct_; }

 private:
  const Routing& routing_;
  SmallestCover cover_;
  std::vector<std::int32_t> strip_;
  std::vector<std::int32_t> distinct_;
  std::vector<std::int32_t> rest_;
  std::vector<char> used_;  ///< [Nr + Nc], 0 between tokens
};

}  // namespace moescope
