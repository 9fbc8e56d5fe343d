#pragma once

#include <string>
#include <vector>

#include "experiments/options/command.hpp"
#include "experiments/options/sim_options.hpp"

/// `moescope simulate --cluster`: a layer on several modelled GPUs.
namespace moescope {

struct ClusterOptions {
  std::string cluster;
  std::vector<std::string> ranks;
  std::vector<std::string> placements;
  std::vector<std::string> exchanges;
  std::vector<std::string> chunks;
  std::string scaling;
  bool no_overlap = false;
  std::string goal;
  std::string chakra;
};

/// --cluster, --ranks, --placement, --exchange, --chunks, --scaling, --no-overlap, --goal,
/// --chakra.
void add_cluster_options(Cli app, ClusterOptions& options);
/// Throws InvalidArgument for an option of a cluster where no cluster was named.
void require_no_cluster_options(const ClusterOptions& options);

/// Models every number of GPUs, placement, exchange and number of chunks asked for, and shows them. Throws
/// InvalidArgument before anything is simulated, FileError, and what model_ranks() throws.
ExitCode simulate_cluster(const CommonOptions& options, const SimulatorOptions& simulator,
                          const ClusterOptions& cluster, const Invocation& invocation);

}  // namespace moescope
