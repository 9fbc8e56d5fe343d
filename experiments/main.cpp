#include <fmt/format.h>

#include <csignal>
#include <iostream>
#include <vector>

#include "core/base/build_info.hpp"
#include "core/base/caught_error.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/plain_output.hpp"
#include "experiments/options/standard_streams.hpp"

namespace {

using namespace moescope;

constexpr const char* kAbout =
    "moescope: what does each schedule of an OmniMoE layer cost, where do the bytes go, and how far is that "
    "from the "
    "limit?\n\n"
    "Start with `moescope compare`: every schedule on a recorded trained layer and on a sweep of skew, in "
    "under a "
    "minute.";

constexpr const char* kFooter =
    "Each subcommand explains itself: moescope compare --help\n\n"
    "Exit codes:\n"
    "  0   done; points that failed while others did not are recorded, and listed at the end\n"
    "  1   a comparison ran and did not hold (check, golden, sweep --baseline), or all points of\n"
    "      a sweep had failed before\n"
    "  2   the command line does not parse\n"
    "  3   a field has a value that cannot work; nothing was written\n"
    "  4   an input file is missing, truncated or lies about its contents; or an output,\n"
    "      standard output too, cannot be written\n"
    "  5   a GPU was asked for and there is none that can be used\n"
    "  6   not enough memory; the message says how much is needed and there\n"
    "  7   a CUDA library call failed\n"
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

int run(int argc, char** argv) {
  CliProgram program("moescope", kAbout, version_text());
  const Cli app = program.root();
  app.footer(kFooter);
  const Invocation invocation{argc, argv};
  const std::vector<Command> commands = {
      add_compare(app, invocation),  add_run(app, invocation),       add_sweep(app, invocation),
      add_check(app, invocation),    add_inspect(app, invocation),   add_profile(app, invocation),
      add_ceilings(app, invocation), add_calibrate(app, invocation), add_roofline(app, invocation),
      add_report(app, invocation),   add_claims(app, invocation),    add_golden(app, invocation),
      add_counters(app, invocation), add_doctor(app, invocation),    add_simulate(app, invocation),
      add_validate(app, invocation), add_paper(app, invocation),     add_schema(app, invocation),
      add_import(app, invocation)};
  if (const auto text = program.parse(argc, argv)) {
    std::cout << *text;
    return code_of(ExitCode::kOk);
  }
  for (const Command& command : commands) {
    if (command.cli.parsed()) {
      return code_of(command.run());
    }
  }
  throw Error(ExitCode::kUsage, "a subcommand is required (moescope --help lists them)");
}

}  // namespace

int main(int argc, char** argv) {
  // A file that may not grow further is an error that write() tells; by default it would end the process.
  (void)std::signal(SIGXFSZ, SIG_IGN);
  const PlainOutput output(std::cout);
  int code = 0;
  try {
    open_standard_streams();
    code = run(argc, argv);
    flush_standard_output();
  } catch (...) {
    const CaughtError error = caught_error();
    print_error(error.message);
    code = code_of(error.code);
  }
  return code;
}
