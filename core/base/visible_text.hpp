#pragma once

#include <string>
#include <string_view>

namespace moescope {

/// Text from outside (names in files of rows, paths) as a person may see it on a terminal, in a page or in a
/// figure: valid UTF-8 without control characters. What is neither is shown by its code: a newline as "\n",
/// ESC as "\x1b", a byte that is no UTF-8 as "\xff", and characters that reorder or break lines (U+202E,
/// U+2028) as "\u202e". Everything else stays as it is.
std::string visible_text(std::string_view text);

/// The same for several lines: '\n' stays.
std::string visible_lines(std::string_view text);

}  // namespace moescope
