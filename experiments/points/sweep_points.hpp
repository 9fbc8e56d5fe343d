#pragma once

#include <string>
#include <string_view>

#include "core/results/experiment.hpp"
#include "experiments/options/options.hpp"
#include "experiments/options/sim_options.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {

/// The options that a point of an experiment stands for; `machine` brings backend and threads.
CommonOptions point_options(const Experiment& experiment, const ExperimentPoint& point,
                            const CommonOptions& machine);

/// The `moescope compare` that measures what these options ask for, whatever the defaults will be.
std::string repro_command(const CommonOptions& options);

/// The `moescope simulate` that models what these options ask for, on the devices of `simulator`.
std::string model_repro_command(const CommonOptions& options, const SimulatorOptions& simulator);

/// The `moescope run` of a study's layer under a schedule, and the `moescope simulate` of the layer: as the
/// study was, whatever the defaults will be, but for backend and samples.
std::string run_command(const LayerStudy& study, const ScheduleOptions& schedule);
std::string simulate_command(const LayerStudy& study);

/// One of several machines that share a sweep: points whose place in the list is index - 1 modulo count.
struct Shard {
  std::size_t index = 1;
  std::size_t count = 1;

  bool has(std::size_t point) const { return point % count == index - 1; }
};
/// "2/8". Throws InvalidArgument("shard", ...).
Shard parse_shard(std::string_view text);

/// "5%" or "0.05". Throws InvalidArgument("threshold", ...).
double parse_threshold(const std::string& text);

}  // namespace moescope
