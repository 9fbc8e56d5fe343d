#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string_view>

#include "core/base/error.hpp"

namespace moescope::fuzz {

/// libFuzzer hands out bytes; they are the text.
inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};  // NOLINT
}

/// Runs what may refuse its input: with an Error that names the input's fault, and with nothing else.
template <class Action>
void may_refuse(const Action& action) {
  try {
    action();
  } catch (const InternalError&) {
    throw;  // a bug of ours
  } catch (const Error&) {
  }
}

}  // namespace moescope::fuzz
