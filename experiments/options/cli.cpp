#include "experiments/options/cli.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <sstream>
#include <string_view>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"

namespace moescope {
namespace {

/// What an unset shell variable leaves is no value, whatever the option: it is refused, not passed over.
constexpr const char* kNotEmpty = "must not be empty";

std::string refuse_empty(const std::string& text) { return text.empty() ? kNotEmpty : ""; }

/// CLI11's own conversions take octal, wrap around and pass over empty texts; here one rule holds everywhere.
template <class T, class Variable>
CLI::Option& add_number(CLI::App& app, const std::string& names, Variable& variable,
                        const std::string& description) {
  return *app.add_option_function<std::string>(
      names,
      [names, &variable](const std::string& text) {
        const auto number = parse_number<T>(text);
        if (!number) {
          throw Error(ExitCode::kUsage, fmt::format("{} = '{}': {}", names, text, number_rule<T>()));
        }
        variable = *number;
      },
      description);
}

/// Appends the parts of `text` between delimiters, of which none may be empty; '\0' stands for no delimiter.
void append_parts(const std::string& names, std::string_view text, char between,
                  std::vector<std::string>& values) {
  for (;;) {
    const auto end = between == '\0' ? std::string_view::npos : text.find(between);
    const std::string_view part = text.substr(0, end);
    if (part.empty()) {
      throw Error(ExitCode::kUsage, fmt::format("{} = '{}': {}", names, text, kNotEmpty));
    }
    values.emplace_back(part);
    if (end == std::string_view::npos) {
      return;
    }
    text.remove_prefix(end + 1);
  }
}

OptionText option_text(const CLI::Option& option, const std::string& group) {
  OptionText text;
  text.positional = option.get_positional();
  if (text.positional) {
    text.names = {option.get_name(true)};
  } else {
    for (const std::string& name : option.get_snames()) {
      text.names.push_back('-' + name);
    }
    for (const std::string& name : option.get_lnames()) {
      text.names.push_back("--" + name);
    }
  }
  text.value = option.get_expected_max() == 0 ? "" : option.get_type_name();
  text.about = option.get_description();
  if (!option.get_default_str().empty()) {
    text.about += fmt::format(" (default {})", option.get_default_str());
  }
  text.group = group;
  text.required = option.get_required();
  text.many = option.get_items_expected_max() > 1 ||
              option.get_multi_option_policy() == CLI::MultiOptionPolicy::TakeAll;
  return text;
}

/// Groups of options are nameless sub-commands to CLI11.
void add_options(const CLI::App& app, const std::string& group, std::vector<OptionText>& options) {
  for (const CLI::Option* option : app.get_options()) {
    const bool again =
        !app.get_name().empty() || app.get_parent() == nullptr ? false : option == app.get_help_ptr();
    if (!again) {  // every group has a --help of its own
      options.push_back(option_text(*option, group));
    }
  }
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (sub->get_name().empty()) {
      const std::string about = sub->get_description();
      add_options(*sub, about.empty() ? sub->get_group() : fmt::format("{}: {}", sub->get_group(), about),
                  options);
    }
  }
}

CommandText command_text(const CLI::App& app) {
  CommandText text;
  text.name = app.get_name();
  text.about = app.get_description();
  text.footer = app.get_footer();
  add_options(app, "", text.options);
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (!sub->get_name().empty()) {
      text.commands.push_back(command_text(*sub));
    }
  }
  return text;
}

}  // namespace

const Option& Option::type_name(const std::string& name) const {
  option_->type_name(name);
  return *this;
}

const Option& Option::description(const std::string& text) const {
  option_->description(text);
  return *this;
}

const Option& Option::delimiter(char between) const {
  if (!between_) {
    throw InternalError("a delimiter is for an option of several values, where it is added");
  }
  *between_ = between;
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

bool Option::given() const { return option_->count() > 0; }

const Option& Option::show_default() const {
  option_->capture_default_str();
  return *this;
}

Option Cli::add_option(const std::string& names, std::string& value, const std::string& description) const {
  return Option(*app_->add_option(names, value, description)->check(refuse_empty));
}

Option Cli::add_option(const std::string& names, int& value, const std::string& description) const {
  return Option(add_number<int>(*app_, names, value, description));
}

Option Cli::add_option(const std::string& names, std::int64_t& value, const std::string& description) const {
  return Option(add_number<std::int64_t>(*app_, names, value, description));
}

Option Cli::add_option(const std::string& names, std::uint64_t& value, const std::string& description) const {
  return Option(add_number<std::uint64_t>(*app_, names, value, description));
}

Option Cli::add_option(const std::string& names, double& value, const std::string& description) const {
  return Option(add_number<double>(*app_, names, value, description));
}

Option Cli::add_option(const std::string& names, std::optional<std::int64_t>& value,
                       const std::string& description) const {
  return Option(add_number<std::int64_t>(*app_, names, value, description));
}

Option Cli::add_option(const std::string& names, std::vector<std::string>& values,
                       const std::string& description) const {
  // CLI11's own delimiter passes over empty values.
  auto between = std::make_shared<char>('\0');
  CLI::Option* option = app_->add_option_function<std::vector<std::string>>(
      names,
      [names, between, &values](const std::vector<std::string>& given) {
        values.clear();
        for (const std::string& text : given) {
          append_parts(names, text, *between, values);
        }
      },
      description);
  return {*option, std::move(between)};
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

namespace {

/// The first example of a command's help; empty without any.
std::string first_example(const std::string& footer) {
  const std::size_t begin = footer.find("\n  ");
  return begin == std::string::npos ? "" : footer.substr(begin + 3, footer.find('\n', begin + 1) - begin - 3);
}

/// Of options that this command does not have, the commands that do: "; --model is an option of import".
std::string whose_options(const CLI::App& program, const std::string& message) {
  constexpr std::size_t kMost = 4;  // what more commands have is no hint
  std::string text;
  std::istringstream words(message);
  for (std::string word; words >> word;) {
    const std::string name = word.substr(0, word.find('='));
    std::vector<std::string> owners;
    for (const CLI::App* command : program.get_subcommands([](const CLI::App*) { return true; })) {
      if (name.starts_with("--") && command->get_option_no_throw(name) != nullptr) {
        owners.push_back(command->get_name());
      }
    }
    if (!owners.empty() && owners.size() <= kMost) {
      text += fmt::format("; {} is an option of {}", name, fmt::join(owners, ", "));
    }
  }
  return text;
}

/// What was wrong, of what is missing what it is and how it may look, and which help says more.
std::string usage_error(const CLI::App& program, const CLI::ParseError& error) {
  const auto commands = program.get_subcommands();
  const CLI::App& command = commands.empty() ? program : *commands.front();
  const std::string path = commands.empty() ? "moescope" : "moescope " + command.get_name();
  std::string text = error.what();
  if (dynamic_cast<const CLI::RequiredError*>(&error) != nullptr) {
    for (const CLI::Option* option : command.get_options()) {
      if (option->get_required() && option->count() == 0) {
        text += fmt::format(": {}", option->get_description());
        break;
      }
    }
    const std::string example = first_example(command.get_footer());
    text += example.empty() ? "" : fmt::format("; for example {}", example);
  }
  if (dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr) {
    text += whose_options(program, text);
  }
  return fmt::format("{} ({} --help shows what is possible)", text, path);
}

}  // namespace

CliProgram::CliProgram(const std::string& name, const std::string& about, const std::string& version)
    : app_(std::make_unique<CLI::App>(about, name)) {
  app_->set_version_flag("--version", version);
  // None at all is the caller's to answer: CLI11's own check would also answer a misspelt one, without naming
  // it.
  app_->require_subcommand(0, 1);
}

CliProgram::~CliProgram() = default;

CommandText CliProgram::describe() const { return command_text(*app_); }

void CliProgram::set_help(std::function<std::string(const CommandText&, const std::string&)> help) {
  const auto format = [help = std::move(help)](const CLI::App* app, const std::string& name,
                                               CLI::AppFormatMode) {
    const std::string parent = app->get_parent() == nullptr ? "" : app->get_parent()->get_name() + ' ';
    return help(command_text(*app), name.empty() ? parent + app->get_name() : name);
  };
  app_->formatter_fn(format);
  for (CLI::App* sub : app_->get_subcommands([](const CLI::App*) { return true; })) {
    sub->formatter_fn(format);
  }
}

std::optional<std::string> CliProgram::parse(int argc, const char* const* argv) {
  try {
    app_->parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help and --version
      std::ostringstream text;
      app_->exit(error, text, text);
      return text.str();
    }
    throw Error(ExitCode::kUsage, usage_error(*app_, error));
  }
  return std::nullopt;
}

const char* cli_library_version() { return CLI11_VERSION; }

}  // namespace moescope
