#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "core/files/safetensors.hpp"

namespace moescope {

/// Parses one .npy file (numpy.lib.format versions 1-3; C or Fortran order, little-endian numbers and bool).
/// Fortran order is converted. Throws FileError; no input crashes it (fuzzed).
FileArray parse_npy(std::span<const std::byte> file, std::string_view path);

/// .npy gives one array named "" ; .npz gives its members without ".npy" (stored or deflated; libzip reads
/// the container). Members that are no array of numbers, or damaged, are `unreadable`; a directory that lies
/// about where and how large its members are is refused whole. Throws FileError.
ArrayFile read_npy_or_npz(const std::filesystem::path& file);
/// The same from memory; for fuzzing and tests.
ArrayFile parse_npz(std::span<const std::byte> file, std::string_view path);

/// By extension: .npy, .npz or .safetensors. Throws FileError for others.
ArrayFile read_array_file(const std::filesystem::path& file);

}  // namespace moescope
