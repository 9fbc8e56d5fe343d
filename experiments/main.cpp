#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <iostream>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/base/build_info.hpp"
#include "core/base/caught_error.hpp"
#include "experiments/manual/help.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/plain_output.hpp"
#include "experiments/options/standard_streams.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/text/fitted_output.hpp"

namespace {

using namespace moescope;

constexpr const char* kAbout =
    "moescope: what does each schedule of an OmniMoE layer cost, where do the bytes go, and how far is that "
    "from the limit?\n\n"
    "Start with `moescope compare`: every schedule on trained routers and on a sweep of skew, in under a "
    "minute.";

constexpr const char* kFooter =
    "Each subcommand explains itself: moescope compare --help\n\n"
    "Exit codes:\n"
    "  0   done; points that failed while others did not are recorded, and listed at the end\n"
    "  1   a comparison ran and did not hold (check, golden, diff, sweep --baseline), or all points of "
    "a sweep had failed before\n"
    "  2   the command line does not parse\n"
    "  3   a field has a value that cannot work; nothing was written\n"
    "  4   an input file is missing, truncated or lies about its contents; or an output, "
    "standard output too, cannot be written\n"
    "  5   a GPU was asked for and there is none that can be used\n"
    "  6   not enough memory; the message says how much is needed and there\n"
    "  7   a CUDA library call failed, or one of several ranks ended early or stopped\n"
    "  8   hardware counters were asked for and cannot be had (see `moescope doctor`)\n"
    "  70  a bug in moescope";

std::string version_text() {
  const BuildInfo& info = build_info();
  return fmt::format("moescope {} ({}{}; {}, {}, -march={}{}{}; CUDA {})", info.version, info.git_revision,
                     info.git_dirty ? ", with changes" : "", info.build_type, info.compiler, info.arch,
                     info.sanitize.empty() ? "" : ", sanitizers ", info.sanitize,
                     info.cuda_compiler.empty() ? "none" : info.cuda_compiler);
}

int code_of(ExitCode code) { return static_cast<int>(code); }

/// "num_tokens = 0: ..." as "-L = 0: ...", when -L is what was typed: messages name fields, people know
/// options. Fields that are no option stay.
std::string as_typed(const std::string& message, const CommandText& command, int argc,
                     const char* const* argv) {
  // Fields that options call otherwise, and those that are a part of one: these stay behind it.
  constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kOthers = {
      {{"max_time_s", "--max-time"},
       {"gate_mode", "--gates"},
       {"grid_rows", "--grid"},
       {"grid_cols", "--grid"}}};
  const std::string field = message.substr(0, message.find(" = "));
  if (field.size() == message.size()) {
    return message;
  }
  const std::size_t value_at = field.size() + 3;
  std::string value = message.substr(value_at, message.find(": ", value_at) - value_at);
  if (value.starts_with('\'') && value.ends_with('\'')) {
    value = value.substr(1, std::max<std::size_t>(value.size(), 2) - 2);
  }
  std::string wanted = "--" + field;
  std::ranges::replace(wanted, '_', '-');
  for (const auto& [other, option] : kOthers) {
    wanted = field == other ? std::string(option) : wanted;
  }
  const bool is_part = field.starts_with("grid_");
  for (const OptionText& option : command.options) {
    const std::string all = fmt::format("{}", fmt::join(option.names, ","));
    if (option.positional ||
        (all != field && std::ranges::find(option.names, wanted) == option.names.end())) {
      continue;
    }
    for (int a = 1; a < argc; ++a) {
      const std::string_view argument = argv[a];
      for (const std::string& name : option.names) {
        const bool is_short = !name.starts_with("--");  // -L8 and -L 8; --num-tokens=8 and --num-tokens 8
        const std::string_view given = argument == name && a + 1 < argc ? argv[a + 1] : argument;
        // The field may have got its value elsewhere: from --vary, from a file.
        if ((argument == name || argument.starts_with(is_short ? name : name + '=')) &&
            (value.ends_with(" of them") || given.find(value) != std::string_view::npos)) {
          return is_part ? fmt::format("{}: {}", name, message) : name + message.substr(field.size());
        }
      }
    }
  }
  return message;
}

/// The command that was typed; the program itself when there is none.
CommandText chosen(const CliProgram& program, const Invocation& invocation) {
  CommandText tree = program.describe();
  for (CommandText& command : tree.commands) {
    if (invocation.argc > 1 && command.name == invocation.argv[1]) {
      return std::move(command);
    }
  }
  return tree;
}

int run_command(const CliProgram& program, const Command& command, const Invocation& invocation) {
  try {
    return code_of(command.run());
  } catch (const InvalidArgument& error) {
    throw Error(error.code(),
                as_typed(error.what(), chosen(program, invocation), invocation.argc, invocation.argv));
  }
}

int run(int argc, char** argv) {
  CliProgram program("moescope", kAbout, version_text());
  const Cli app = program.root();
  app.footer(kFooter);
  const Invocation invocation{argc, argv};
  const std::vector<Command> commands = {
      add_compare(app, invocation),   add_run(app, invocation),      add_sweep(app, invocation),
      add_diff(app, invocation),      add_check(app, invocation),    add_inspect(app, invocation),
      add_place(app, invocation),     add_profile(app, invocation),  add_ceilings(app, invocation),
      add_calibrate(app, invocation), add_roofline(app, invocation), add_headroom(app, invocation),
      add_report(app, invocation),    add_claims(app, invocation),   add_golden(app, invocation),
      add_counters(app, invocation),  add_doctor(app, invocation),   add_simulate(app, invocation),
      add_validate(app, invocation),  add_paper(app, invocation),    add_schema(app, invocation),
      add_import(app, invocation),    add_presets(app, invocation),  add_completion(app, program),
      add_man(app, program)};
  program.set_help([](const CommandText& command, const std::string& path) {
    return help_text(command, path, stdout_width());
  });
  std::optional<std::string> text;
  try {
    text = program.parse(argc, argv);
  } catch (const Error& error) {
    throw Error(error.code(), as_typed(error.what(), chosen(program, invocation), argc, argv));
  }
  if (text) {
    std::cout << *text;
    return code_of(ExitCode::kOk);
  }
  for (const Command& command : commands) {
    if (command.cli.parsed()) {
      return run_command(program, command, invocation);
    }
  }
  throw Error(ExitCode::kUsage, "a subcommand is required (moescope --help lists them)");
}

}  // namespace

int main(int argc, char** argv) {
  // A file that may not grow further is an error that write() tells; by default it would end the process.
  (void)std::signal(SIGXFSZ, SIG_IGN);
  const FittedOutput fitted_output(std::cout, stdout_width());
  const FittedOutput messages(std::cerr, stderr_width());
  const PlainOutput output(std::cout, stdout_has_colours());
  int code = 0;
  try {
    open_standard_streams();
    const std::optional<ExitCode> served = serve_as_rank(argc, argv);
    code = served ? code_of(*served) : run(argc, argv);
    flush_standard_output();
  } catch (...) {
    const CaughtError error = caught_error();
    print_error(error.message);
    code = code_of(error.code);
  }
  return code;
}
