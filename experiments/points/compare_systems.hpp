#pragma once

#include "core/base/error.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// `compare` with --system: layers of different kinds side by side on tokens of the same distribution,
/// OmniMoE under every schedule asked for (default: expert_centric, the paper's, and staircase). Prints one
/// table and writes rows.
ExitCode compare_systems(const CommonOptions& options, const Invocation& invocation);

}  // namespace moescope
