#include "core/backend/moe_backend.hpp"

#include <fmt/format.h>

#include "core/backend/training_execution.hpp"
#include "core/base/error.hpp"

namespace moescope {

StageData LayerExecution::run_alone(Stage stage, const StageData& /*given*/) {
  throw InternalError(fmt::format("this layer cannot run {} alone", to_string(stage)));
}

bool MoeBackend::supports_layer(const LayerInputs& /*inputs*/, const ScheduleOptions& options,
                                std::string& why) const {
  if (options.ranks.several()) {
    why = fmt::format("the {} backend runs a layer on one device", name());
    return false;
  }
  return supports(options.kind, why);
}

std::unique_ptr<LayerExecution> MoeBackend::prepare_routed(const LayerInputs& inputs,
                                                           const ScheduleOptions& options,
                                                           const Routing& /*routing*/) {
  return prepare(inputs, options);
}

bool MoeBackend::supports_training(const LayerInputs& /*inputs*/, const ScheduleOptions& /*options*/,
                                   const TrainingOptions& /*training*/, std::string& why) const {
  why = fmt::format("the {} backend has no backward", name());
  return false;
}

std::unique_ptr<TrainingExecution> MoeBackend::prepare_training(const LayerInputs& /*inputs*/,
                                                                const HostTensor& /*dy*/,
                                                                const ScheduleOptions& /*options*/,
                                                                const TrainingOptions& /*training*/) {
  throw InvalidArgument("direction", to_string(Direction::kBackward),
                        fmt::format("is not supported by the {} backend", name()));
}

bool MoeBackend::supports_system(System system, std::string& why) const {
  why = fmt::format("the {} backend has no {}", name(), to_string(system));
  return false;
}

bool MoeBackend::supports_token_rules(std::string& why) const {
  why = fmt::format("the {} backend gives experts every pair", name());
  return false;
}

std::unique_ptr<LayerExecution> MoeBackend::prepare_ruled_system(const SystemInputs& inputs) {
  if (std::string why; !inputs.tokens.every() && !supports_token_rules(why)) {
    throw InvalidArgument("schedule", to_string(inputs.tokens), why);
  }
  return prepare_system(inputs);
}

std::unique_ptr<LayerExecution> MoeBackend::prepare_system(const SystemInputs& inputs) {
  throw InvalidArgument("system", to_string(inputs.shape.system),
                        fmt::format("is not supported by the {} backend", name()));
}

}  // namespace moescope
