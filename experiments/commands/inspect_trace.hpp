#pragma once

#include <string>

#include "core/base/error.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// Skew of every layer of the trace `path` as one table, and as rows where options.output says so. Its grid
/// may be given; tokens and weights play no part, so that no hidden size is needed but for rows. Throws
/// FileError and InvalidArgument.
ExitCode inspect_trace(const std::string& path, const CommonOptions& options, const Invocation& invocation);

}  // namespace moescope
