#pragma once

#include <string>

#include "core/base/error.hpp"

namespace moescope {

/// What an exception means to a user.
struct CaughtError {
  ExitCode code = ExitCode::kInternal;
  std::string message;
};

/// The exception that is being handled; for catch (...) alone. An Error is what it says; what a file system
/// or a stream threw is kBadFile with the file where that is known; too little memory, address space or
/// threads is kOutOfMemory. Everything else is a bug of moescope.
CaughtError caught_error();

}  // namespace moescope
