#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace moescope {

/// Deepest nesting of any JSON that moescope reads: none of its files needs more. Deeper values would cost
/// stack wherever they are printed.
inline constexpr int kMostJsonLevels = 8;

/// Where a JSON text stands, for messages.
struct JsonPlace {
  std::string file;
  std::string within;  ///< of a text inside the file: "line 5"; empty for the whole file
};

/// The one way from text to JSON for everything that moescope reads. Throws FileError with the place (line
/// and column of a mistake in the syntax, else the member) for text that is not JSON or not UTF-8, NaN and
/// infinities, numbers that do not fit, a key that stands twice in an object, and more levels than
/// kMostJsonLevels. Takes time in proportion to the text. Json is nlohmann::json or nlohmann::ordered_json.
template <class Json>
Json parse_json(std::string_view text, const JsonPlace& place);

extern template nlohmann::json parse_json(std::string_view text, const JsonPlace& place);
extern template nlohmann::ordered_json parse_json(std::string_view text, const JsonPlace& place);

/// A value as a message shows it: one line of ASCII, cut when long.
template <class Json>
std::string shown(const Json& value);

extern template std::string shown(const nlohmann::json& value);
extern template std::string shown(const nlohmann::ordered_json& value);

}  // namespace moescope
