#pragma once

#include <cstdint>
#include <string_view>

namespace moescope {

/// Bytes of host memory that can be taken without swapping: the kernel's MemAvailable, capped by the limit of
/// the memory control group (v2) the process runs in. An estimate: other processes take memory too.
std::uint64_t available_host_memory_bytes();

/// Throws OutOfMemory(where, ...) when `need_bytes` are more than available_host_memory_bytes().
/// Of what no integer holds, the largest is named.
void require_host_memory(std::string_view where, double need_bytes);

}  // namespace moescope
