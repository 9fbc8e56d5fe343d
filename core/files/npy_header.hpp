#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"

/// What .npy and .npz readers share; not for use outside core/.
namespace moescope::detail {

/// Where an array lies, for messages: the file and, in an .npz, the member without ".npy".
struct NpyPlace {
  std::string_view path;
  std::string_view member;

  /// Throws FileError(path, "member.field", what).
  [[noreturn]] void fail(std::string_view field, std::string_view what) const;
};

struct NpyHeader {
  std::string dtype;  ///< FileArray's name for it
  bool fortran_order = false;
  std::vector<std::int64_t> shape;
  std::size_t data_offset = 0;  ///< bytes from the start of the file
};

/// Parses and checks the header against the length of the file. Throws FileError.
NpyHeader parse_npy_header(std::span<const std::byte> file, const NpyPlace& place);

/// An .npy file's array; C order keeps the memory of `file`, so that large arrays are held once.
FileArray take_npy(std::vector<std::byte> file, const NpyPlace& place);

}  // namespace moescope::detail
