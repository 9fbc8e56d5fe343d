#include "core/base/number_text.hpp"

#include <charconv>
#include <cmath>
#include <type_traits>

namespace moescope {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// "010", "-00.5": not "0", "0.5", "0e3".
bool has_leading_zero(std::string_view text) {
  if (text.starts_with('-')) {
    text.remove_prefix(1);
  }
  return text.size() > 1 && text[0] == '0' && is_digit(text[1]);
}

}  // namespace

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end || has_leading_zero(text)) {
    return std::nullopt;
  }
  if constexpr (std::is_floating_point_v<T>) {
    if (!std::isfinite(value)) {
      return std::nullopt;
    }
  }
  return value;
}

template std::optional<int> parse_number<int>(std::string_view text);
template std::optional<std::int64_t> parse_number<std::int64_t>(std::string_view text);
template std::optional<std::uint64_t> parse_number<std::uint64_t>(std::string_view text);
template std::optional<double> parse_number<double>(std::string_view text);

}  // namespace moescope
