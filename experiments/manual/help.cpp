#include "experiments/manual/help.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <string_view>
#include <vector>

#include "core/base/line_text.hpp"
#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

constexpr std::size_t kWidth = 100;
constexpr std::size_t kOptionColumn = 30;  ///< where descriptions begin

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  for (;;) {
    const auto end = text.find('\n');
    lines.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) {
      return lines;
    }
    text.remove_prefix(end + 1);
  }
}

/// Where a line goes on that is too long: below its first word, or, of "name    meaning", below the meaning.
std::size_t hang_of(std::string_view line) {
  const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
  const std::size_t gap = line.find("  ", begin);
  const std::size_t meaning = gap == std::string_view::npos ? gap : line.find_first_not_of(' ', gap);
  return meaning == std::string_view::npos || meaning > 40 ? begin : meaning;
}

/// Text of several lines, each wrapped by itself, behind `indent` spaces. A command is continued as a shell
/// has it.
std::string paragraph(const std::string& text, std::size_t indent) {
  const std::string space(indent, ' ');
  std::string out;
  for (const std::string& line :
       lines_of(std::string_view(text).substr(0, text.find_last_not_of('\n') + 1))) {
    const bool is_command = line.starts_with("  moescope") || line.starts_with("  ncu");
    const std::size_t width = kWidth - indent - (is_command ? 2 : 0);
    const std::size_t hang = hang_of(line);
    const auto parts = wrapped(line, width, std::string(is_command ? hang + 4 : hang, ' '));
    for (std::size_t p = 0; p < parts.size(); ++p) {
      std::string part = space + parts[p];
      part.erase(part.find_last_not_of(' ') + 1);
      out += part;
      out += is_command && p + 1 < parts.size() ? " \\\n" : "\n";
    }
  }
  return out;
}

/// A name in a column of `column` characters, its description beside it, or below where the name is longer.
std::string entry(const std::string& name, const std::string& about, std::size_t column) {
  const std::string body = paragraph(about, column);
  const std::string head = "  " + name;
  if (text_width(head) + 2 > column) {
    return head + '\n' + body;
  }
  return head + body.substr(text_width(head));
}

std::string option_name(const OptionText& option) {
  const std::string value = option.value.empty() ? "" : ' ' + option.value;
  if (option.positional) {
    return fmt::format("{}{}", option.value.empty() ? option.names.front() : option.value,
                       option.many ? "..." : "");
  }
  return fmt::format("{}{}{}", option.names.front().starts_with("--") ? "    " : "",
                     fmt::join(option.names, ", "), value);
}

std::string usage(const CommandText& command, const std::string& path) {
  std::string text = fmt::format("Usage: {}{}", path, command.commands.empty() ? "" : " COMMAND");
  text += " [OPTIONS]";
  for (const OptionText& option : command.options) {
    if (option.positional) {
      const std::string name = option_name(option);
      text += option.required ? fmt::format(" {}", name) : fmt::format(" [{}]", name);
    }
  }
  return text;
}

}  // namespace

std::string help_text(const CommandText& command, const std::string& path) {
  std::string text = paragraph(command.about, 0) + '\n' + paragraph(usage(command, path), 0);
  if (!command.commands.empty()) {
    text += "\nCommands:\n";
    for (const CommandText& sub : command.commands) {
      text += entry(sub.name, sub.about, 14);
    }
  }
  std::string arguments;
  for (const OptionText& option : command.options) {
    if (option.positional) {
      arguments += entry(option_name(option), option.about, kOptionColumn);
    }
  }
  text += arguments.empty() ? "" : "\nArguments:\n" + arguments;
  std::vector<std::string> groups;
  for (const OptionText& option : command.options) {
    if (!option.positional && std::ranges::find(groups, option.group) == groups.end()) {
      groups.push_back(option.group);
    }
  }
  for (const std::string& group : groups) {
    text += '\n' + paragraph((group.empty() ? "Options" : group) + ":", 0);
    for (const OptionText& option : command.options) {
      if (!option.positional && option.group == group) {
        text += entry(option_name(option), option.about, kOptionColumn);
      }
    }
  }
  if (!command.footer.empty()) {
    text += '\n' + paragraph(command.footer, 0);
  }
  return text;
}

}  // namespace moescope
