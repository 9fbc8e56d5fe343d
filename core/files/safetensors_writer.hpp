#pragma once

#include <map>
#include <string>

#include "core/files/safetensors.hpp"

namespace moescope {

/// A safetensors file of these arrays in the order of their names, with these texts as "__metadata__"; its
/// data starts at a multiple of 8 bytes. parse_safetensors() gives the same arrays back. Throws InternalError
/// for arrays whose dtype the format does not have (texts) or whose bytes do not fit their shape.
std::string safetensors_content(const std::map<std::string, FileArray>& arrays,
                                const std::map<std::string, std::string>& metadata);

}  // namespace moescope
