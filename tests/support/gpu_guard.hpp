#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/runtime/device_info.hpp"

namespace moescope::test {

/// MOESCOPE_REQUIRE_GPU=1 turns skips into failures, so that a run on a GPU machine is never green by
/// skipping.
inline bool gpu_is_required() {
  const char* value = std::getenv("MOESCOPE_REQUIRE_GPU");
  return value != nullptr && std::string(value) == "1";
}

/// MOESCOPE_SANITIZER=1 says that a tool slows kernels down unevenly: what compares times is left out.
inline bool under_sanitizer() {
  const char* value = std::getenv("MOESCOPE_SANITIZER");
  return value != nullptr && std::string(value) == "1";
}

}  // namespace moescope::test

/// First line of a test body (or of SetUp) that needs a GPU.
#define MOESCOPE_NEEDS_GPU()                                                   \
  do {                                                                         \
    if (const auto why = ::moescope::cuda::why_no_device(); why.has_value()) { \
      if (::moescope::test::gpu_is_required()) {                               \
        FAIL() << "MOESCOPE_REQUIRE_GPU=1 but no usable GPU: " << *why;        \
      }                                                                        \
      GTEST_SKIP() << "no usable GPU: " << *why;                               \
    }                                                                          \
  } while (false)
