#pragma once

#include <cstddef>
#include <string>

#include "experiments/options/cli.hpp"

/// What is written from the program's own tree of commands: help, the manual page, shell completion.
namespace moescope {

/// --help of a command: what it does, how it is called, its options by group, examples. No line is longer
/// than `columns` characters (0: any) nor than 100, but for words that are. `path` is what was typed up to
/// it, "moescope run".
std::string help_text(const CommandText& command, const std::string& path, std::size_t columns);

/// The manual page, for man(1): every command with all its options. `version` stands in its footer.
std::string man_page(const CommandText& program, const std::string& version);

/// A completion script of bash, zsh or fish: commands, options, files after options that take them. Throws
/// InvalidArgument("shell", ...).
std::string completion_script(const CommandText& program, const std::string& shell);

}  // namespace moescope
