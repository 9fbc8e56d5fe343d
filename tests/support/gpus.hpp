#pragma once

#include "core/base/gpu_traits.hpp"

namespace moescope::test {

/// Made up: as many multiprocessors as most sizes in the tests are chosen for, kernels of compute capability
/// 9.0, if nothing else is asked for.
inline GpuTraits large_gpu(std::int64_t compute_capability = 90, std::int64_t num_sms = 132) {
  return {.name = "large GPU",
          .compute_capability = compute_capability,
          .num_sms = num_sms,
          .l2_bytes = std::int64_t{50} << 20,
          .memory_bytes = std::int64_t{80} << 30,
          .shared_bytes_per_block = 232'448,
          .sm_clock_hz = 1.98e9};
}

}  // namespace moescope::test
