#pragma once

#include <string_view>

#include "core/backend/moe_backend.hpp"

namespace moescope {

/// The state that to_string() calls so. Throws InvalidArgument("l2", ...).
L2State parse_l2_state(std::string_view text);

}  // namespace moescope
