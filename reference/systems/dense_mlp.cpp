// The dense baseline: one gated MLP for every token, y = (act(x gate^T) * (x up^T)) down^T.
#include "core/base/error.hpp"
#include "core/systems/system_cost.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/system_execution.hpp"

namespace moescope::reference {
namespace {

class DenseMlp final : public SystemExecution {
 public:
  explicit DenseMlp(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleOptions schedule_options() const override { return system_schedule(System::kDenseMlp); }
  std::vector<StageMemory> memory() const override {
    return {{Stage::kSharedMlp, gated_mlp_workspace_bytes(shape())}};
  }

 private:
  void compute(Stage stage) override {
    if (stage != Stage::kSharedMlp) {
      throw InternalError("dense_mlp has no such stage");
    }
    y_ = gated_mlp(inputs_.hidden_states, *weights().shared, shape().activation);
  }
};

}  // namespace

std::unique_ptr<LayerExecution> make_dense_mlp(const SystemInputs& inputs) {
  return std::make_unique<DenseMlp>(inputs);
}

}  // namespace moescope::reference
