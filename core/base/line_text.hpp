#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moescope {

/// `text` as one line that a terminal shows and does not obey: control characters (escape sequences begin
/// with one, and a name may hold any) as \n, \t or \xNN. UTF-8 stays as it is.
std::string one_line(std::string_view text);

/// Characters of UTF-8 text; bytes of other text.
std::size_t text_width(std::string_view text);

/// The first `width` characters of UTF-8 text.
std::string_view first_characters(std::string_view text, std::size_t width);

}  // namespace moescope
