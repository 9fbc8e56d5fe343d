// DeepSeekMoE (Dai et al. 2024): fine-grained FFN experts beside a shared one that every token passes.
// y = shared(x) + sum over the top K of softmax(logits)_e * FFN_e(x), gates not renormalised.
#include "core/error.hpp"
#include "reference/ffn_experts.hpp"
#include "reference/matmul.hpp"
#include "reference/stages.hpp"
#include "reference/system_execution.hpp"

namespace moescope::reference {
namespace {

class DeepSeekMoe final : public SystemExecution {
 public:
  explicit DeepSeekMoe(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleKind schedule_kind() const override { return ScheduleKind::kExpertCentric; }
  std::vector<StageMemory> memory() const override {
    auto memory = ffn_memory(shape(), schedule_);
    memory.push_back({Stage::kSharedMlp, gated_mlp_workspace_bytes(shape()) + y_bytes(shape())});
    return memory;
  }

 private:
  void compute(Stage stage) override {
    switch (stage) {
      case Stage::kRouterProject:
        logits_ = ffn_router_project(inputs_);
        break;
      case Stage::kRouterSelect:
        routing_ = ffn_router_select(shape(), logits_);
        logits_ = {};
        break;
      case Stage::kSchedule:
        schedule_ = ffn_schedule(routing_);
        break;
      case Stage::kExperts:
        y_ = ffn_experts(inputs_, routing_, schedule_);
        break;
      case Stage::kSharedMlp:
        add_in_place(y_, gated_mlp(inputs_.hidden_states, *weights().shared, shape().activation));
        break;
      default:
        throw InternalError("deepseekmoe has no such stage");
    }
  }

  Schedule schedule_;
};

}  // namespace

std::unique_ptr<LayerExecution> make_deepseekmoe(const SystemInputs& inputs) {
  return std::make_unique<DeepSeekMoe>(inputs);
}

}  // namespace moescope::reference
