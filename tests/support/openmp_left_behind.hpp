#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <system_error>

namespace moescope::test {

/// To be called for a process that was killed, or ended without exit(), once it is gone. LLVM's OpenMP leaves
/// a file of such a process in shared memory, and a later process of the same id reads addresses from it that
/// are not its own: seen as a bus error at the start of a program that had nothing to do with the tests
/// before it.
inline void remove_openmp_registration(pid_t process) {
  std::error_code ignored;
  std::filesystem::remove(
      "/dev/shm/__KMP_REGISTERED_LIB_" + std::to_string(process) + "_" + std::to_string(getuid()), ignored);
}

}  // namespace moescope::test
