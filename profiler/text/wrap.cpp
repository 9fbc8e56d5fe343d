#include "profiler/text/wrap.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/line_text.hpp"

namespace moescope {

std::vector<std::string> wrapped(std::string_view text, std::size_t width, std::string_view indent) {
  std::vector<std::string> lines;
  std::string line;
  bool has_word = false;
  while (!text.empty()) {
    const std::size_t start = std::min(text.find_first_not_of(' '), text.size());
    const std::string_view word = text.substr(start, text.find(' ', start) - start);
    const std::string_view spaces = text.substr(0, start);
    if (has_word && !word.empty() && text_width(line) + start + text_width(word) > width) {
      lines.push_back(line);
      line = fmt::format("{}{}", indent, word);
    } else if (!word.empty()) {
      line += fmt::format("{}{}", spaces, word);
    }
    has_word = true;
    text.remove_prefix(start + word.size());
  }
  lines.push_back(line);
  return lines;
}

std::string paragraph(std::string_view text, std::size_t width, std::string_view indent) {
  return width == 0 ? fmt::format("{}\n", text)
                    : fmt::format("{}\n", fmt::join(wrapped(text, width, indent), "\n"));
}

}  // namespace moescope
