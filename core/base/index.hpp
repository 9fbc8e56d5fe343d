#pragma once

#include <cstddef>
#include <cstdint>

namespace moescope {

/// A signed index, as extents and ids are counted here, for the containers of the standard library. It must
/// not be negative.
constexpr std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

}  // namespace moescope
