#pragma once

#include "core/base/caught_error.hpp"

namespace moescope {

/// What act() returns; or, when it ends in an error that a user can act on, what
/// fail(ExitCode, std::string reason) makes of that: measurements record it and go on. Bugs (what
/// caught_error() takes for one) pass.
template <class Act, class Fail>
auto or_failure(Act&& act, Fail&& fail) -> decltype(act()) {
  try {
    return act();
  } catch (...) {
    const CaughtError error = caught_error();
    if (error.code == ExitCode::kInternal) {
      throw;
    }
    return fail(error.code, error.message);
  }
}

}  // namespace moescope
