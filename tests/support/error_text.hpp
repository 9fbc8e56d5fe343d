#pragma once

#include <exception>
#include <string>

namespace moescope::test {

/// what() of the `Expected` error that `action` throws, "(no error)" when it throws none; others pass
/// through.
template <class Expected, class Action>
std::string error_text(Action&& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  return "(no error)";
}

}  // namespace moescope::test
