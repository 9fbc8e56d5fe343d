#pragma once

#include <string>

#include "experiments/options/command.hpp"
#include "experiments/options/options.hpp"

/// `moescope place --volume`: what travels among GPUs against N, L, K and P.
namespace moescope {

struct VolumeOptions {
  std::int64_t ranks = 8;
  std::string placement;  ///< empty: linear
  std::string cluster;    ///< empty: bytes alone
};

/// Varies each size of the layer asked for, the others held: sides of the grid from an eighth to four
/// times, L, K and P from a quarter to four times, where they fit. Throws InvalidArgument for a workload of a
/// file, whose sizes are what they are, and for a system other than omnimoe.
ExitCode place_volume(const CommonOptions& options, const VolumeOptions& volume,
                      const Invocation& invocation);

}  // namespace moescope
