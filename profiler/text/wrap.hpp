#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moescope {

/// Lines of at most `width` characters (UTF-8), broken at spaces, the second and later ones behind `indent`;
/// a longer word is not broken. At least one line; leading spaces of the text stay.
std::vector<std::string> wrapped(std::string_view text, std::size_t width, std::string_view indent = "");

/// The same as text whose every line ends with '\n'; a width of 0 is any: one line.
std::string paragraph(std::string_view text, std::size_t width, std::string_view indent = "");

}  // namespace moescope
