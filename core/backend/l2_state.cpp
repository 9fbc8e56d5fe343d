#include "core/backend/l2_state.hpp"

#include "core/base/error.hpp"

namespace moescope {

std::string_view to_string(L2State state) { return state == L2State::kCold ? "cold" : "warm"; }

L2State parse_l2_state(std::string_view text) {
  for (const L2State state : {L2State::kCold, L2State::kWarm}) {
    if (to_string(state) == text) {
      return state;
    }
  }
  throw InvalidArgument("l2", text, "must be cold or warm");
}

}  // namespace moescope
