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

constexpr std::size_t kWidest = 100;       ///< nobody reads longer lines
constexpr std::size_t kOptionColumn = 30;  ///< where descriptions begin, at most

/// A page of help of a width.
class HelpPage {
 public:
  explicit HelpPage(std::size_t columns)
      : width_(columns == 0 ? kWidest : std::min(columns, kWidest)),
        option_column_(std::min(kOptionColumn, width_ * 3 / 8)) {}

  /// Text of several lines, each fitted by itself, behind `indent` spaces.
  std::string paragraph(const std::string& text, std::size_t indent = 0) const {
    const std::string body =
        fitted(text.substr(0, text.find_last_not_of('\n') + 1), std::max(width_, indent + 20) - indent, 0);
    std::string out;
    for (std::size_t at = 0; at <= body.size();) {
      const std::size_t end = std::min(body.find('\n', at), body.size());
      std::string line = std::string(indent, ' ') + body.substr(at, end - at);
      line.erase(line.find_last_not_of(' ') + 1);
      out += line + '\n';
      at = end + 1;
    }
    return out;
  }

  /// A name in a column of `column` characters, its description beside it, or below where the name is longer.
  std::string entry(const std::string& name, const std::string& about, std::size_t column) const {
    const std::string body = paragraph(about, column);
    const std::string head = "  " + name;
    if (text_width(head) + 2 > column) {
      return head + '\n' + body;
    }
    return head + body.substr(text_width(head));
  }
  std::string option(const std::string& name, const std::string& about) const {
    return entry(name, about, option_column_);
  }

 private:
  std::size_t width_;
  std::size_t option_column_;
};

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

std::string help_text(const CommandText& command, const std::string& path, std::size_t columns) {
  const HelpPage page(columns);
  std::string text = page.paragraph(command.about) + '\n' + page.paragraph(usage(command, path));
  if (!command.commands.empty()) {
    text += "\nCommands:\n";
    for (const CommandText& sub : command.commands) {
      text += page.entry(sub.name, sub.about, 14);
    }
  }
  std::string arguments;
  for (const OptionText& option : command.options) {
    if (option.positional) {
      arguments += page.option(option_name(option), option.about);
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
    text += '\n' + page.paragraph((group.empty() ? "Options" : group) + ":");
    for (const OptionText& option : command.options) {
      if (!option.positional && option.group == group) {
        text += page.option(option_name(option), option.about);
      }
    }
  }
  if (!command.footer.empty()) {
    text += '\n' + page.paragraph(command.footer);
  }
  return text;
}

}  // namespace moescope
