#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "profiler/simulator/streams/access_builder.hpp"

/// The staircase on strips: what its forward and its backward share. Not for use outside
/// profiler/simulator/streams/access_*.cpp.
namespace moescope::detail {

/// A tile of a strip's tokens against one segment of its experts.
struct StripUnit {
  std::int64_t item;
  std::int64_t begin;  ///< entries [begin, end) of Schedule::tokens
  std::int64_t end;
  std::int64_t first_expert;  ///< within the strip
  std::int64_t number = 0;    ///< tile * segments + segment, of what is kept by tile
};

/// Every tile of the schedule, strips ascending, in the order in which blocks take them.
std::vector<StripUnit> strip_units(const StreamContext& context);

/// The strips of each token: CSR over tokens.
struct Covers {
  std::vector<std::int64_t> offsets;
  std::vector<std::int64_t> strips;   ///< row r, or Nr + column
  std::vector<std::int64_t> entries;  ///< place in Schedule::tokens
};
std::shared_ptr<const Covers> covers_of(const StreamContext& context);

/// One pass of the staircase kernel's frame over its tiles: a product with rows that are gathered, and what
/// follows from it.
struct StripPass {
  std::uint64_t tokens = 0;  ///< X or dY [L, d], gathered
  std::uint64_t first = 0;   ///< W or V [N, d] of the first product
  /// Of a second product, whose results are added to `sums` [L, d] under `sum_bytes` a value; without one the
  /// first is all, and no log-probabilities are read.
  bool has_second = true;
  std::uint64_t second = 0;
  std::uint64_t sums = 0;
  std::int64_t sum_bytes = 4;
  double pace = 1;  ///< times the clocks of a forward's tile
  /// What lies between the products: beside log-probabilities.
  std::function<void(const StripUnit& strip, WorkUnit& unit)> between = nullptr;
};

/// Replaces `unit` by one tile of a pass.
void fill_strip(const StreamContext& context, const StripArrays& arrays, const StripPass& pass,
                const StripUnit& strip, WorkUnit& unit);

/// Size of the frame's kernels as compiled for sm_90a, for 320 experts.
inline constexpr std::int64_t kStripCodeBytes = 73'216;

}  // namespace moescope::detail
