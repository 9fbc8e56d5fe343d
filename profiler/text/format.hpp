#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace moescope {

/// Three significant digits with a binary prefix: "512 B", "1.18 MiB".
std::string format_bytes(double bytes);
/// Three significant digits with an SI prefix: "1.23 ms", "45.6 s".
std::string format_seconds(double seconds);
/// Three significant digits with an SI prefix: format_engineering(1.2e10, "flop") is "12.0 Gflop".
std::string format_engineering(double value, std::string_view unit);
/// A fraction as a percentage: format_percent(0.0123) is "1.2 %".
std::string format_percent(double fraction);
/// Lines of at most `width` characters (UTF-8), broken at spaces, the second and later ones behind `indent`;
/// a longer word is not broken. At least one line; leading spaces of the text stay.
std::vector<std::string> wrapped(std::string_view text, std::size_t width, std::string_view indent = "");
/// Characters of a UTF-8 text: bytes that do not continue one.
std::size_t width_of(std::string_view text);

}  // namespace moescope
