#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"
#include "core/results/result.hpp"

namespace moescope {

/// How the program was called, for run headers.
struct Invocation {
  int argc = 0;
  const char* const* argv = nullptr;
};

/// A subcommand: how it is parsed, and what to do when it was chosen. `run` throws Error.
struct Command {
  CLI::App* app = nullptr;
  std::function<ExitCode()> run;
};

Command add_compare(CLI::App& app, const Invocation& invocation);
Command add_run(CLI::App& app, const Invocation& invocation);
Command add_sweep(CLI::App& app, const Invocation& invocation);
Command add_check(CLI::App& app, const Invocation& invocation);
Command add_inspect(CLI::App& app, const Invocation& invocation);
Command add_profile(CLI::App& app, const Invocation& invocation);
Command add_roofline(CLI::App& app, const Invocation& invocation);
Command add_ceilings(CLI::App& app, const Invocation& invocation);
Command add_simulate(CLI::App& app, const Invocation& invocation);
Command add_validate(CLI::App& app, const Invocation& invocation);
Command add_paper(CLI::App& app, const Invocation& invocation);
Command add_report(CLI::App& app, const Invocation& invocation);
Command add_claims(CLI::App& app, const Invocation& invocation);
Command add_golden(CLI::App& app, const Invocation& invocation);
Command add_counters(CLI::App& app, const Invocation& invocation);
Command add_doctor(CLI::App& app, const Invocation& invocation);

/// Header of a run on `backend`, with the versions of every library used.
RunHeader run_header(const Invocation& invocation, const MoeBackend& backend);

/// Ends an option description with examples, as --help shows them.
std::string examples(std::initializer_list<const char*> lines);

}  // namespace moescope
