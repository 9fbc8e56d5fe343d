#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "core/files/safetensors.hpp"

namespace moescope::fuzz {

/// What callers do with an array that a reader let through: none of it may crash either.
inline void use_array(const FileArray& array) {
  try {
    (void)array.to_tensor(Dtype::kBF16, "fuzz", "array");
  } catch (const FileError&) {  // an integer type
    try {
      (void)array.to_integers("fuzz", "array");
    } catch (const FileError&) {  // past int64
    }
  }
}

/// Bytes as .npz when they begin as one, else as safetensors, where no checksum stops a mutation early.
inline ArrayFile parse_arrays(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const bool zipped = size > 1 && data[0] == 'P' && data[1] == 'K';
  return zipped ? parse_npz(bytes, "fuzz.npz") : parse_safetensors(bytes, "fuzz.npz");
}

inline void use_arrays(const ArrayFile& file) {
  for (const auto& [name, array] : file.arrays) {
    use_array(array);
  }
}

}  // namespace moescope::fuzz
