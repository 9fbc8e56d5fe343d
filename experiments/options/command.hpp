#pragma once

#include <functional>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "experiments/options/cli.hpp"

namespace moescope {

/// How the program was called, for run headers.
struct Invocation {
  int argc = 0;
  const char* const* argv = nullptr;
};

/// A subcommand: how it is parsed, and what to do when it was chosen. `run` throws Error.
struct Command {
  Cli cli;
  std::function<ExitCode()> run;
};

Command add_compare(Cli app, const Invocation& invocation);
Command add_run(Cli app, const Invocation& invocation);
Command add_diff(Cli app, const Invocation& invocation);
Command add_sweep(Cli app, const Invocation& invocation);
Command add_check(Cli app, const Invocation& invocation);
Command add_inspect(Cli app, const Invocation& invocation);
Command add_place(Cli app, const Invocation& invocation);
Command add_import(Cli app, const Invocation& invocation);
Command add_profile(Cli app, const Invocation& invocation);
Command add_roofline(Cli app, const Invocation& invocation);
Command add_headroom(Cli app, const Invocation& invocation);
Command add_calibrate(Cli app, const Invocation& invocation);
Command add_ceilings(Cli app, const Invocation& invocation);
Command add_simulate(Cli app, const Invocation& invocation);
Command add_validate(Cli app, const Invocation& invocation);
Command add_paper(Cli app, const Invocation& invocation);
Command add_report(Cli app, const Invocation& invocation);
Command add_claims(Cli app, const Invocation& invocation);
Command add_golden(Cli app, const Invocation& invocation);
Command add_counters(Cli app, const Invocation& invocation);
Command add_doctor(Cli app, const Invocation& invocation);
Command add_schema(Cli app, const Invocation& invocation);

Command add_presets(Cli app, const Invocation& invocation);
/// Of these `program` must outlive the command.
Command add_completion(Cli app, const CliProgram& program);
Command add_man(Cli app, const CliProgram& program);

/// Header of a run on `backend`, with the versions of every library used.
RunHeader run_header(const Invocation& invocation, const MoeBackend& backend);

/// Ends an option description with examples, as --help shows them.
std::string examples(std::initializer_list<const char*> lines);

}  // namespace moescope
