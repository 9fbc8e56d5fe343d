// DeepSeekMoE (Dai et al. 2024): fine-grained FFN experts beside a shared one that every token passes.
// y = shared(x) + sum over the top K of softmax(logits)_e * FFN_e(x), gates not renormalised.
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/ffn_experts.hpp"

namespace moescope::reference {
namespace {

class DeepSeekMoe final : public FfnExecution {
 public:
  explicit DeepSeekMoe(const SystemInputs& inputs) : FfnExecution(inputs) {}

  std::vector<StageMemory> memory() const override {
    auto memory = FfnExecution::memory();
    memory.push_back({Stage::kSharedMlp, gated_mlp_workspace_bytes(shape()) + y_bytes(shape())});
    return memory;
  }

 private:
  void compute(Stage stage) override {
    if (stage != Stage::kSharedMlp) {
      FfnExecution::compute(stage);
      return;
    }
    add_in_place(y_, gated_mlp(inputs_.hidden_states, *weights().shared, shape().activation));
  }
};

}  // namespace

std::unique_ptr<LayerExecution> make_deepseekmoe(const SystemInputs& inputs) {
  return std::make_unique<DeepSeekMoe>(inputs);
}

}  // namespace moescope::reference
