// Any bytes as an .npy file: a result or a FileError, nothing else.
#include <cstdint>

#include "array_file_use.hpp"
#include "core/files/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    moescope::fuzz::use_array(moescope::parse_npy(std::as_bytes(std::span(data, size)), "fuzz"));
  } catch (const moescope::FileError&) {
  }
  return 0;
}
