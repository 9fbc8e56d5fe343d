#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace moescope {

/// `text`, all of it, as a number in the one way that people may write them here: decimal, without a plus,
/// spaces or zeros in front (010 is ten to some programs and eight to others), and in the range of T; of
/// fractions, finite. Otherwise nothing. T: int, std::int64_t, std::uint64_t, double.
template <class T>
std::optional<T> parse_number(std::string_view text);

/// What parse_number<T>() asks for, to end a message: "must be a whole number ...".
template <class T>
constexpr std::string_view number_rule();

template <>
constexpr std::string_view number_rule<int>() {
  return "must be a whole number, decimal, without leading zeros, of at most 32 bits";
}
template <>
constexpr std::string_view number_rule<std::int64_t>() {
  return "must be a whole number, decimal, without leading zeros, of at most 64 bits";
}
template <>
constexpr std::string_view number_rule<std::uint64_t>() {
  return "must be a whole number >= 0, decimal, without leading zeros, of at most 64 bits";
}
template <>
constexpr std::string_view number_rule<double>() {
  return "must be a number, decimal, finite, without leading zeros";
}

}  // namespace moescope
