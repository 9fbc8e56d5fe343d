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

/// Where a line goes on that is too long: of "name    meaning" below the meaning, else `more` characters
/// right of its first word.
std::size_t hang_of(std::string_view line, std::size_t more);

/// Whether a line is a call of this program, or of a profiler around it, to be copied.
bool is_command(std::string_view line);

/// Text of several lines, each fitted into `width` characters by itself (0: any) and going on at hang_of().
/// A line that is a command, "moescope ..." or "ncu ...", goes on as a shell has it: behind " \", and no
/// quoted word is broken. Lines that fit stay as they are,
/// and those with a '\r', which a terminal rewrites.
std::string fitted(std::string_view text, std::size_t width, std::size_t more = 2);

}  // namespace moescope
