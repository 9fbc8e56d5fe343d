#pragma once

#include <cstdint>
#include <string_view>

namespace moescope {

/// Extents of the router's grid as typed.
struct GridExtents {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

/// "64x64" or "64,64". Throws InvalidArgument("grid", ...).
GridExtents parse_grid(std::string_view text);

}  // namespace moescope
