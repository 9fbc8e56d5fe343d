#pragma once

#include <memory>
#include <string>

#include "core/backend/moe_backend.hpp"

namespace moescope {

/// The layer on the CPU: the mirror that the GPU path is checked against. fp32 and bf16 storage, fp32
/// accumulation, OpenMP. Every schedule is deterministic, whatever the number of threads. sparse_library is
/// refused.
class ReferenceBackend final : public MoeBackend {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string device() const override;
  bool supports(ScheduleKind kind, std::string& why) const override;
  bool supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                      std::string& why) const override;

  RouterLogits router_project(const LayerInputs& inputs) override;
  Routing router_select(const LayerShape& shape, const RouterLogits& logits) override;
  Schedule schedule(const Routing& routing, const ScheduleOptions& options) override;

  std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs, const ScheduleOptions& options) override;
  std::unique_ptr<LayerExecution> prepare_routed(const LayerInputs& inputs, const ScheduleOptions& options,
                                                 const Routing& routing) override;

  bool supports_training(const LayerInputs& inputs, const ScheduleOptions& options,
                         const TrainingOptions& training, std::string& why) const override;
  std::unique_ptr<TrainingExecution> prepare_training(const LayerInputs& inputs, const HostTensor& dy,
                                                      const ScheduleOptions& options,
                                                      const TrainingOptions& training) override;

  bool supports_system(System system, std::string& why) const override;
  bool supports_token_rules(std::string& why) const override;
  std::unique_ptr<LayerExecution> prepare_system(const SystemInputs& inputs) override;
};

}  // namespace moescope
