#include <fmt/format.h>
#include <fmt/ranges.h>

#include "experiments/manual/help.hpp"

namespace moescope {
namespace {

/// Text that roff shows as it is.
std::string roff(const std::string& text) {
  std::string out;
  bool line_starts = true;
  for (const char c : text) {
    if (line_starts && (c == '.' || c == '\'')) {
      out += "\\&";
    }
    out += c == '\\' ? "\\e" : c == '-' ? "\\-" : std::string(1, c);
    line_starts = c == '\n';
  }
  return out;
}

std::string bold(const std::string& text) { return fmt::format("\\fB{}\\fR", roff(text)); }

std::string option_entry(const OptionText& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.names) {
    names.push_back(bold(name));
  }
  const std::string value =
      option.value.empty() || option.positional ? "" : fmt::format(" \\fI{}\\fR", roff(option.value));
  std::string about = roff(option.about.substr(0, option.about.find_last_not_of('\n') + 1));
  for (std::size_t at = 0; (at = about.find('\n', at)) != std::string::npos; at += 5) {
    about.replace(at, 1, "\n.br\n");
  }
  return fmt::format(".TP\n{}{}\n{}\n", fmt::join(names, ", "), value, about);
}

std::string command_section(const CommandText& command, const std::string& path) {
  std::string text = fmt::format(".SS {}\n{}\n", roff(path), roff(command.about));
  for (const OptionText& option : command.options) {
    text += option_entry(option);
  }
  if (!command.footer.empty()) {
    text += fmt::format(".PP\n.nf\n{}\n.fi\n", roff(command.footer));
  }
  return text;
}

}  // namespace

std::string man_page(const CommandText& program, const std::string& version) {
  std::string text =
      fmt::format(".TH {} 1 \"\" \"{}\" \"User Commands\"\n", roff(program.name), roff(version));
  text += fmt::format(".SH NAME\n{} \\- {}\n", roff(program.name),
                      "simulates and profiles mixture\\-of\\-experts layers with atomic experts");
  text += fmt::format(".SH SYNOPSIS\n{} \\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n", bold(program.name));
  text += fmt::format(".SH DESCRIPTION\n{}\n.SH COMMANDS\n", roff(program.about));
  for (const CommandText& command : program.commands) {
    text += command_section(command, fmt::format("{} {}", program.name, command.name));
  }
  return text + fmt::format(".SH NOTES\n.nf\n{}\n.fi\n", roff(program.footer));
}

}  // namespace moescope
