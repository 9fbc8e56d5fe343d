#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "capi/base/failure.hpp"

namespace moescope::capi {

/// Hands out the caller's workspace piece by piece, 64-byte aligned. Without a base it only adds up, so that
/// one description of an operation's scratch gives both its size and its pointers.
class Arena {
 public:
  Arena() = default;
  Arena(void* base, std::size_t bytes) : base_(static_cast<std::byte*>(base)), limit_(bytes) {}

  /// Uninitialised; null while sizes are added up. Throws Failure (workspace) when it does not fit.
  template <class T>
  T* take(std::int64_t count) {
    const std::size_t begin = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (base_ == nullptr) {
      return nullptr;
    }
    if (used_ > limit_) {
      throw Failure(MOESCOPE_ERROR_WORKSPACE, "workspace_bytes: " + std::to_string(limit_) + " are too few");
    }
    return reinterpret_cast<T*>(base_ + begin);
  }

  std::size_t used() const { return used_; }

  static constexpr std::size_t kAlignment = 64;

 private:
  std::byte* base_ = nullptr;
  std::size_t limit_ = 0;
  std::size_t used_ = 0;
};

}  // namespace moescope::capi
