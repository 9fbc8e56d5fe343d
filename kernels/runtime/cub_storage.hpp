#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "core/base/error.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// Runs a CUB call twice: for its need, which must be within the bound in bytes, and for its work. Throws
/// InternalError naming `what` where the bound was too small, CudaError.
template <class Call>
void with_cub_storage(const char* what, void* storage, std::int64_t bound, const Call& call) {
  std::size_t bytes = 0;
  MOESCOPE_CUDA_CHECK(call(nullptr, bytes));
  if (bytes > static_cast<std::size_t>(bound)) {
    throw InternalError(
        fmt::format("{} needs {} bytes of temporary storage, {} were planned", what, bytes, bound));
  }
  MOESCOPE_CUDA_CHECK(call(storage, bytes));
}

}  // namespace moescope::cuda
