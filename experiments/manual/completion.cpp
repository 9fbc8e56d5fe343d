#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "experiments/manual/help.hpp"

namespace moescope {
namespace {

constexpr std::array<std::string_view, 3> kShells = {"bash", "zsh", "fish"};

/// Whether the value is a file or folder.
bool takes_files(const OptionText& option) {
  constexpr std::array<std::string_view, 8> kFiles = {"FILE", "DIR",       "ROWS", "A",
                                                      "B",    "NAME|FILE", "SPEC", "FILES"};
  return std::ranges::find(kFiles, option.value) != kFiles.end();
}

/// The first sentence of a description, without what a shell would read as more than text.
std::string summary(const std::string& about) {
  std::string text = one_line(about.substr(0, about.find_first_of(".;\n")));
  std::erase_if(text,
                [](char c) { return std::string_view("'\"`\\[]$:").find(c) != std::string_view::npos; });
  return text;
}

std::vector<std::string> option_names(const CommandText& command, bool (*wanted)(const OptionText&)) {
  std::vector<std::string> names;
  for (const OptionText& option : command.options) {
    if (!option.positional && wanted(option)) {
      names.insert(names.end(), option.names.begin(), option.names.end());
    }
  }
  return names;
}

bool any_option(const OptionText& /*option*/) { return true; }
bool has_value(const OptionText& option) { return !option.value.empty(); }
bool has_other_value(const OptionText& option) { return has_value(option) && !takes_files(option); }

std::vector<std::string> command_names(const CommandText& program) {
  std::vector<std::string> names;
  for (const CommandText& command : program.commands) {
    names.push_back(command.name);
  }
  return names;
}

/// Values of options are files, or nobody knows; elsewhere options, or files.
std::string bash(const CommandText& program) {
  std::string options;
  std::string values;
  for (const CommandText& command : program.commands) {
    if (command.name == "completion") {
      continue;  // its argument is one of few
    }
    options += fmt::format("    {}) options='{}' ;;\n", command.name,
                           fmt::join(option_names(command, any_option), " "));
    const auto others = option_names(command, has_other_value);
    if (!others.empty()) {
      values += fmt::format("    {}) values='{}' ;;\n", command.name, fmt::join(others, " "));
    }
  }
  return fmt::format(
      "# bash completion of {0}: eval \"$({0} completion bash)\"\n"
      "_{0}() {{\n"
      "  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} options='' values=''\n"
      "  COMPREPLY=()\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W '{1} --help --version' -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  case ${{COMP_WORDS[1]}} in\n{2}    completion) options='{4}' ;;\n  esac\n"
      "  case ${{COMP_WORDS[1]}} in\n{3}    *) ;;\n  esac\n"
      "  case \" $values \" in *\" $before \"*) return ;; esac\n"
      "  if [[ $word == -* || ${{COMP_WORDS[1]}} == completion ]]; then\n"
      "    COMPREPLY=($(compgen -W \"$options\" -- \"$word\"))\n"
      "  else\n"
      "    COMPREPLY=($(compgen -f -- \"$word\"))\n"
      "  fi\n"
      "}}\n"
      "complete -o filenames -F _{0} {0}\n",
      program.name, fmt::join(command_names(program), " "), options, values, fmt::join(kShells, " "));
}

std::string zsh(const CommandText& program) {
  std::string commands;
  std::string cases;
  for (const CommandText& command : program.commands) {
    commands += fmt::format("    '{}:{}'\n", command.name, summary(command.about));
    std::string arguments;
    for (const OptionText& option : command.options) {
      if (option.positional) {
        arguments += " \\\n        '*:file:_files'";
        continue;
      }
      const std::string value = has_value(option) ? fmt::format(":{}:{}", summary(option.value),
                                                                takes_files(option) ? "_files" : "")
                                                  : "";
      for (const std::string& name : option.names) {
        arguments += fmt::format(" \\\n        '{}{}[{}]{}'", option.many ? "*" : "", name,
                                 summary(option.about), value);
      }
    }
    cases += fmt::format("      {}) _arguments{} ;;\n", command.name, arguments);
  }
  return fmt::format(
      "#compdef {0}\n"
      "# zsh completion of {0}: {0} completion zsh >\"${{fpath[1]}}/_{0}\"\n"
      "_{0}() {{\n"
      "  local -a commands=(\n{1}  )\n"
      "  if (( CURRENT == 2 )); then\n"
      "    _describe command commands\n"
      "  else\n"
      "    local command=$words[2]\n"
      "    shift words\n"
      "    (( CURRENT-- ))\n"
      "    case $command in\n{2}    esac\n"
      "  fi\n"
      "}}\n"
      "compdef _{0} {0}\n",
      program.name, commands, cases);
}

std::string fish(const CommandText& program) {
  std::string text = fmt::format("# fish completion of {0}: {0} completion fish | source\n", program.name);
  for (const CommandText& command : program.commands) {
    text += fmt::format("complete -c {} -n __fish_use_subcommand -f -a {} -d '{}'\n", program.name,
                        command.name, summary(command.about));
    for (const OptionText& option : command.options) {
      if (option.positional) {
        continue;
      }
      std::string names;
      for (const std::string& name : option.names) {
        names += name.starts_with("--") ? fmt::format(" -l {}", name.substr(2))
                                        : fmt::format(" -s {}", name.substr(1));
      }
      text += fmt::format("complete -c {} -n '__fish_seen_subcommand_from {}'{}{} -d '{}'\n", program.name,
                          command.name, names,
                          !has_value(option)    ? ""
                          : takes_files(option) ? " -r -F"
                                                : " -x",
                          summary(option.about));
    }
  }
  return text;
}

}  // namespace

std::string completion_script(const CommandText& program, const std::string& shell) {
  if (shell == "bash") {
    return bash(program);
  }
  if (shell == "zsh") {
    return zsh(program);
  }
  if (shell == "fish") {
    return fish(program);
  }
  throw InvalidArgument("shell", shell, fmt::format("must be one of {}", fmt::join(kShells, ", ")));
}

}  // namespace moescope
