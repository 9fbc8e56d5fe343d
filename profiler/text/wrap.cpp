#include "profiler/text/wrap.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/line_text.hpp"

namespace moescope {
namespace {

/// A meaning that begins further right than this leaves no room to go on below it.
constexpr std::size_t kMostHang = 40;

/// Words of a line of shell as they are written, quotes with them.
std::vector<std::string> shell_words(std::string_view line) {
  std::vector<std::string> words;
  char quote = 0;
  bool inside = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == ' ' && quote == 0) {
      inside = false;
      continue;
    }
    if (!inside) {
      words.emplace_back();
      inside = true;
    }
    words.back() += c;
    if (c == '\\' && quote != '\'' && i + 1 < line.size()) {
      words.back() += line[++i];
    } else if (quote == 0 ? c == '\'' || c == '"' : c == quote) {
      quote = quote == 0 ? c : char{0};
    }
  }
  return words;
}

std::vector<std::string> command_lines(std::string_view line, std::size_t width) {
  constexpr std::string_view kGoesOn = " \\";
  const std::string indent(std::min(line.find_first_not_of(' '), line.size()), ' ');
  std::vector<std::string> lines;
  std::string current = indent;
  for (const std::string& word : shell_words(line)) {
    if (text_width(current) > indent.size() &&
        text_width(current) + 1 + text_width(word) + kGoesOn.size() > width) {
      lines.push_back(current.append(kGoesOn));
      current = indent + "   ";
    }
    current += current == indent ? word : ' ' + word;
  }
  lines.push_back(current);
  return lines;
}

/// The part of a text before its next '\n', which is taken off it, too.
std::string_view take_line(std::string_view& text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return line;
}

}  // namespace

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

std::size_t hang_of(std::string_view line, std::size_t more) {
  const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
  const std::size_t gap = line.find("  ", begin);
  const std::size_t meaning = gap == std::string_view::npos ? gap : line.find_first_not_of(' ', gap);
  return meaning == std::string_view::npos || meaning > kMostHang ? begin + more : meaning;
}

bool is_command(std::string_view line) {
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  return line.starts_with("moescope ") || line.starts_with("ncu ");
}

std::string fitted(std::string_view text, std::size_t width, std::size_t more) {
  std::string out;
  while (!text.empty()) {
    const bool ends = text.find('\n') != std::string_view::npos;
    const std::string_view line = take_line(text);
    const bool rewritten =
        line.find('\r') != std::string_view::npos;  // a terminal's own line, fitted already
    if (width == 0 || text_width(line) <= width || rewritten) {
      out += line;
    } else if (is_command(line)) {
      out += fmt::format("{}", fmt::join(command_lines(line, width), "\n"));
    } else {
      out += fmt::format("{}", fmt::join(wrapped(line, width, std::string(hang_of(line, more), ' ')), "\n"));
    }
    out += ends ? "\n" : "";
  }
  return out;
}

}  // namespace moescope
