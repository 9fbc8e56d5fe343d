#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace moescope {

/// An option of the command line; a handle that may be copied. CLI11 stands behind it, and in cli.cpp alone:
/// its templates cost more to compile than any command.
class Option {
 public:
  explicit Option(CLI::Option& option) : option_(&option) {}
  /// Of several values; `between` is where delimiter() leaves what lies between them.
  Option(CLI::Option& option, std::shared_ptr<char> between)
      : option_(&option), between_(std::move(between)) {}

  /// How --help calls the value, e.g. "FILE".
  const Option& type_name(const std::string& name) const;
  const Option& description(const std::string& text) const;
  /// One argument may hold several values, with this between them. For options of several values.
  const Option& delimiter(char between) const;
  /// Takes one value each time it is given. For options of several values.
  const Option& repeatable() const;
  const Option& required() const;
  /// Whether the command line has it.
  bool given() const;
  /// --help shows the value that the variable has now.
  const Option& show_default() const;

 private:
  CLI::Option* option_;
  std::shared_ptr<char> between_;
};

/// A command, or a group of options of one; a handle that may be copied. `names` are "-L,--num-tokens" or,
/// for what is given by its place alone, "files". What is not given leaves its variable alone, which must
/// outlive the parsing.
class Cli {
 public:
  explicit Cli(CLI::App& app) : app_(&app) {}

  Option add_option(const std::string& names, std::string& value, const std::string& description) const;
  Option add_option(const std::string& names, int& value, const std::string& description) const;
  Option add_option(const std::string& names, std::int64_t& value, const std::string& description) const;
  Option add_option(const std::string& names, std::uint64_t& value, const std::string& description) const;
  Option add_option(const std::string& names, double& value, const std::string& description) const;
  Option add_option(const std::string& names, std::optional<std::int64_t>& value,
                    const std::string& description) const;
  Option add_option(const std::string& names, std::vector<std::string>& values,
                    const std::string& description) const;
  Option add_flag(const std::string& names, bool& value, const std::string& description) const;
  /// One that was added before, e.g. "--backend".
  Option get_option(const std::string& name) const;
  Cli add_option_group(const std::string& name, const std::string& description) const;
  Cli add_subcommand(const std::string& name, const std::string& description) const;
  /// Ends --help.
  void footer(const std::string& text) const;
  /// True when this command was chosen.
  bool parsed() const;

 private:
  CLI::App* app_;
};

/// An option as --help, the manual and shell completion show it.
struct OptionText {
  std::vector<std::string>
      names;          ///< as typed, "-L", "--num-tokens"; of one given by its place its name alone
  std::string value;  ///< what the value is called, "FILE"; empty for a flag
  std::string about;
  std::string group;  ///< heading; empty for the command's own
  bool positional = false;
  bool required = false;
  bool many = false;  ///< may be given more than once, or takes several values
};

/// A command with everything that can be typed after it.
struct CommandText {
  std::string name;
  std::string about;
  std::string footer;
  std::vector<OptionText> options;
  std::vector<CommandText> commands;
};

/// The whole program's command line.
class CliProgram {
 public:
  CliProgram(const std::string& name, const std::string& about, const std::string& version);
  CliProgram(const CliProgram&) = delete;
  CliProgram& operator=(const CliProgram&) = delete;
  ~CliProgram();

  Cli root() const { return Cli(*app_); }
  /// The tree of commands and options.
  CommandText describe() const;
  /// How --help shows a command; `path` is what was typed up to it, "moescope run".
  void set_help(std::function<std::string(const CommandText& command, const std::string& path)> help);
  /// What --help or --version asked to be shown; nothing when there is a command to run, or none was named.
  /// Throws Error(kUsage).
  std::optional<std::string> parse(int argc, const char* const* argv);

 private:
  std::unique_ptr<CLI::App> app_;
};

/// Of the library behind this.
const char* cli_library_version();

}  // namespace moescope
