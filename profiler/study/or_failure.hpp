#pragma once

#include <new>
#include <string>

#include "core/base/error.hpp"

namespace moescope {

/// What act() returns; or, when it ends in an error that a user can act on or for want of memory, what
/// fail(ExitCode, std::string reason) makes of that: measurements record it and go on. Bugs (InternalError,
/// and all that is no Error) pass.
template <class Act, class Fail>
auto or_failure(Act&& act, Fail&& fail) -> decltype(act()) {
  try {
    return act();
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    return fail(error.code(), std::string(error.what()));
  } catch (const std::bad_alloc&) {
    return fail(ExitCode::kOutOfMemory, std::string("out of memory"));
  }
}

}  // namespace moescope
