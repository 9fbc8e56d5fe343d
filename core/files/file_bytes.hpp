#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"

/// What the readers of files share.
namespace moescope::detail {

/// Bytes of one element of a FileArray dtype name; 0 for a name that no reader produces.
std::int64_t file_dtype_bytes(std::string_view dtype);
/// The same of NumPy's texts of a fixed length, "U7" (4 bytes a character) and "S7"; 0 for other names and
/// for lengths that no name of ours has.
std::int64_t file_text_bytes(std::string_view dtype);

/// element_bytes times all extents. Empty when the product passes int64, counting extents of 0 as 1: a shape
/// that only a zero keeps from overflowing is refused too, because its rows could not be counted.
std::optional<std::int64_t> checked_bytes(std::span<const std::int64_t> shape, std::int64_t element_bytes);

/// Text found in a file as a one-line message may print it: ASCII only, other bytes as '?', cut behind
/// `longest` bytes.
std::string printable(std::string_view text, std::size_t longest = 80);

/// "[8192, 256]"
std::string shape_text(std::span<const std::int64_t> shape);

/// Elements [first, first + out.size()) of an integer array. Throws as FileArray::to_integers.
void copy_integers(const FileArray& array, std::int64_t first, std::span<std::int64_t> out,
                   std::string_view path, std::string_view name);

}  // namespace moescope::detail
