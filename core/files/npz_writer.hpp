#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"

namespace moescope {

/// An array of these values, [shape]. T: std::int64_t, std::int32_t, std::uint16_t, std::uint8_t, float.
template <class T>
FileArray file_array(std::span<const T> values, std::vector<std::int64_t> shape);
/// A text as NumPy keeps it, of no axes; what is no UTF-8 is replaced.
FileArray text_array(std::string_view text);

/// An .npz file (numpy.savez_compressed) of these arrays, in the order of their names and without a time of
/// its own: the same arrays give the same bytes. Throws InternalError when an array's bytes do not fit its
/// shape.
std::string npz_content(const std::map<std::string, FileArray>& arrays);

}  // namespace moescope
