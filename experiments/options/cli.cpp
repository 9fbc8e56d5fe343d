#include "experiments/options/cli.hpp"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <sstream>

#include "core/base/error.hpp"

namespace moescope {

const Option& Option::type_name(const std::string& name) const {
  option_->type_name(name);
  return *this;
}

const Option& Option::description(const std::string& text) const {
  option_->description(text);
  return *this;
}

const Option& Option::delimiter(char between) const {
  option_->delimiter(between);
  return *this;
}

const Option& Option::repeatable() const {
  option_->expected(1)->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  return *this;
}

const Option& Option::required() const {
  option_->required();
  return *this;
}

const Option& Option::show_default() const {
  option_->capture_default_str();
  return *this;
}

Option Cli::add_option(const std::string& names, std::string& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, int& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, std::int64_t& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, std::uint64_t& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, double& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, std::optional<std::int64_t>& value,
                       const std::string& description) const {
  return Option(*app_->add_option(names, value, description));
}

Option Cli::add_option(const std::string& names, std::vector<std::string>& values,
                       const std::string& description) const {
  return Option(*app_->add_option(names, values, description));
}

Option Cli::add_flag(const std::string& names, bool& value, const std::string& description) const {
  return Option(*app_->add_flag(names, value, description));
}

Option Cli::get_option(const std::string& name) const { return Option(*app_->get_option(name)); }

Cli Cli::add_option_group(const std::string& name, const std::string& description) const {
  return Cli(*app_->add_option_group(name, description));
}

Cli Cli::add_subcommand(const std::string& name, const std::string& description) const {
  return Cli(*app_->add_subcommand(name, description));
}

void Cli::footer(const std::string& text) const { app_->footer(text); }

bool Cli::parsed() const { return app_->parsed(); }

CliProgram::CliProgram(const std::string& name, const std::string& about, const std::string& version)
    : app_(std::make_unique<CLI::App>(about, name)) {
  app_->set_version_flag("--version", version);
  // None at all is the caller's to answer: CLI11's own check would also answer a misspelt one, without naming
  // it.
  app_->require_subcommand(0, 1);
}

CliProgram::~CliProgram() = default;

std::optional<std::string> CliProgram::parse(int argc, const char* const* argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help and --version
      std::ostringstream text;
      app_->exit(error, text, text);
      return text.str();
    }
    throw Error(ExitCode::kUsage, fmt::format("{} (moescope --help shows what is possible)", error.what()));
  }
  return std::nullopt;
}

const char* cli_library_version() { return CLI11_VERSION; }

}  // namespace moescope
