#pragma once

#include "core/base/error.hpp"
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

inline void use_arrays(const ArrayFile& file) {
  for (const auto& [name, array] : file.arrays) {
    use_array(array);
  }
}

}  // namespace moescope::fuzz
