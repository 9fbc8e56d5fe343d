#pragma once

#include <cstdint>

#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// Checks the baselines that options.systems names, end to end against the fp64 oracle: the one shape that
/// the options describe, or awkward ones in both storage types and, with `full`, paper Table A at L = 1024
/// with the smallest and the largest K and at L = 4096, under every schedule asked for (default: its own).
/// Prints a line for each; what the backend refuses or has no memory for is skipped. Throws InvalidArgument
/// for omnimoe, which `check` is for without --system.
ExitCode check_systems(const CommonOptions& options, bool full, std::int64_t sampled_tokens,
                       const Invocation& invocation);

}  // namespace moescope
