#pragma once

#include <string>
#include <string_view>

namespace moescope {

/// `argument` as one word of a POSIX shell, in single quotes where it needs them.
inline std::string shell_word(std::string_view argument) {
  if (!argument.empty() && argument.find_first_of(" \t\n'\"\\$*?;&|<>()[]{}~#!`") == std::string_view::npos) {
    return std::string(argument);
  }
  std::string word = "'";
  for (const char c : argument) {
    word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  }
  return word + '\'';
}

}  // namespace moescope
