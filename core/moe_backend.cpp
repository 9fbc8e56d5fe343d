#include "core/moe_backend.hpp"

namespace moescope {

std::string_view to_string(L2State state) { return state == L2State::kCold ? "cold" : "warm"; }

}  // namespace moescope
