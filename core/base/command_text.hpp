#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "core/base/utf8.hpp"

namespace moescope {

/// `argument` as one word of a POSIX shell, in single quotes where it needs them. The word is UTF-8 whatever
/// the argument is: other bytes (names of files may have them) stand there in octal, as $'...' has them.
inline std::string shell_word(std::string_view argument) {
  if (valid_utf8(argument) != argument) {
    std::string word = "$'";
    while (!argument.empty()) {
      const std::size_t length = utf8_length(argument);
      if (length == 0) {
        word += fmt::format("\\{:03o}", static_cast<unsigned char>(argument[0]));
      } else if (argument[0] == '\'' || argument[0] == '\\') {
        word += fmt::format("\\{}", argument[0]);
      } else {
        word += argument.substr(0, length);
      }
      argument.remove_prefix(length == 0 ? 1 : length);
    }
    return word + '\'';
  }
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
