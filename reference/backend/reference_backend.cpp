#include "reference/backend/reference_backend.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <fstream>

#include "reference/backend/cpu_rates.hpp"
#include "reference/backend/reference_execution.hpp"
#include "reference/backend/reference_training.hpp"
#include "reference/ranks/ranks_execution.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/system_execution.hpp"

namespace moescope {

std::string ReferenceBackend::device() const {
  std::string model = "unknown CPU";
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("model name") && line.find(": ") != std::string::npos) {
      model = line.substr(line.find(": ") + 2);
      break;
    }
  }
  return fmt::format("{}, {} threads", model, omp_get_max_threads());
}

bool ReferenceBackend::supports(ScheduleKind kind, std::string& why) const {
  return reference::supports_schedule(kind, why);
}

bool ReferenceBackend::supports_layer(const LayerInputs& /*inputs*/, const ScheduleOptions& options,
                                      std::string& why) const {
  return options.ranks.several() ? reference::RanksExecution::supports(options.kind, why)
                                 : supports(options.kind, why);
}

RouterLogits ReferenceBackend::router_project(const LayerInputs& inputs) {
  inputs.validate();
  return reference::router_project(inputs);
}

Routing ReferenceBackend::router_select(const LayerShape& shape, const RouterLogits& logits) {
  return reference::router_select(shape, logits);
}

Schedule ReferenceBackend::schedule(const Routing& routing, const ScheduleOptions& options) {
  routing.validate();
  return reference::build(routing, options);
}

std::unique_ptr<LayerExecution> ReferenceBackend::prepare(const LayerInputs& inputs,
                                                          const ScheduleOptions& options) {
  if (options.ranks.several()) {
    return std::make_unique<reference::RanksExecution>(inputs, options,
                                                       reference::cpu_rates(omp_get_max_threads()));
  }
  return std::make_unique<reference::ReferenceExecution>(inputs, options);
}

std::unique_ptr<LayerExecution> ReferenceBackend::prepare_routed(const LayerInputs& inputs,
                                                                 const ScheduleOptions& options,
                                                                 const Routing& routing) {
  if (options.ranks.several()) {
    return std::make_unique<reference::RanksExecution>(inputs, options,
                                                       reference::cpu_rates(omp_get_max_threads()), &routing);
  }
  return std::make_unique<reference::ReferenceExecution>(inputs, options, &routing);
}

bool ReferenceBackend::supports_training(const LayerInputs& /*inputs*/, const ScheduleOptions& options,
                                         const TrainingOptions& /*training*/, std::string& why) const {
  if (options.ranks.several()) {
    why = "the backward runs on one rank";
    return false;
  }
  return reference::supports_schedule(options.kind, why);
}

std::unique_ptr<TrainingExecution> ReferenceBackend::prepare_training(const LayerInputs& inputs,
                                                                      const HostTensor& dy,
                                                                      const ScheduleOptions& options,
                                                                      const TrainingOptions& training) {
  return std::make_unique<reference::ReferenceTraining>(inputs, dy, options, training);
}

bool ReferenceBackend::supports_system(System system, std::string& why) const {
  if (system == System::kOmniMoe) {
    why = "omnimoe is prepared from LayerInputs";
  }
  return system != System::kOmniMoe;
}

bool ReferenceBackend::supports_token_rules(std::string& /*why*/) const { return true; }

std::unique_ptr<LayerExecution> ReferenceBackend::prepare_system(const SystemInputs& inputs) {
  return reference::make_system_execution(inputs);
}

}  // namespace moescope
