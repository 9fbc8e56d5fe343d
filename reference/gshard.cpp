// GShard-style top-K FFN experts (Lepikhin et al. 2021, as Mixtral runs them): no capacity limit, no token is
// dropped. y = sum over the top K of softmax(logits)_e * FFN_e(x), gates renormalised over the K.
#include "core/error.hpp"
#include "reference/ffn_experts.hpp"
#include "reference/system_execution.hpp"

namespace moescope::reference {
namespace {

class GShard final : public SystemExecution {
 public:
  explicit GShard(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleKind schedule_kind() const override { return ScheduleKind::kExpertCentric; }
  std::vector<StageMemory> memory() const override { return ffn_memory(shape(), schedule_); }

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
      default:
        throw InternalError("gshard has no such stage");
    }
  }

  Schedule schedule_;
};

}  // namespace

std::unique_ptr<LayerExecution> make_gshard(const SystemInputs& inputs) {
  return std::make_unique<GShard>(inputs);
}

}  // namespace moescope::reference
