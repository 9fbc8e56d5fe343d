#pragma once

#include <optional>
#include <string>

#include "core/base/error.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// The trace that is asked for as a whole: by its name, or as the one workload of all layers; nothing for
/// anything else. Throws InvalidArgument for a name beside a workload, and where its routing is to be saved.
std::optional<std::string> whole_trace(const std::string& file, const std::string& save_trace,
                                       const CommonOptions& options);

/// Skew of every layer of the trace `path` as one table, and as rows where options.output says so. Its grid
/// may be given; tokens and weights play no part, so that no hidden size is needed but for rows. Throws
/// FileError and InvalidArgument. What it says goes to `out`.
ExitCode inspect_trace(const std::string& path, const CommonOptions& options, const Invocation& invocation,
                       TableOutput& out);

}  // namespace moescope
