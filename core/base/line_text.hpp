#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moescope {

/// Text from outside (names in files of rows, paths) as one line that a person sees and a terminal, a page or
/// a figure does not obey: valid UTF-8 without control characters. What is neither is shown by its code: a
/// newline as "\n", ESC as "\x1b", a byte that is no UTF-8 as "\xff", characters that reorder or break lines
/// (U+202E, U+2028) as "\u202e". Everything else stays as it is.
std::string one_line(std::string_view text);

/// The same for a text of several lines: '\n' and '\t' stay.
std::string plain_lines(std::string_view text);

/// Characters of UTF-8 text; bytes of other text.
std::size_t text_width(std::string_view text);

/// The first `width` characters of UTF-8 text.
std::string_view first_characters(std::string_view text, std::size_t width);

}  // namespace moescope
