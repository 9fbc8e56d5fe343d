#pragma once

#include <cstdint>

namespace moescope {

/// Bytes of host memory that can be taken without swapping: the kernel's MemAvailable, capped by the limit of
/// the memory control group (v2) the process runs in. An estimate: other processes take memory too.
std::uint64_t available_host_memory_bytes();

}  // namespace moescope
