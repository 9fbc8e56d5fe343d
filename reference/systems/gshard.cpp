// GShard-style top-K FFN experts (Lepikhin et al. 2021, as Mixtral runs them): no capacity limit, no token is
// dropped. y = sum over the top K of softmax(logits)_e * FFN_e(x), gates renormalised over the K.
#include "reference/systems/ffn_experts.hpp"

namespace moescope::reference {

std::unique_ptr<LayerExecution> make_gshard(const SystemInputs& inputs) {
  return std::make_unique<FfnExecution>(inputs);
}

}  // namespace moescope::reference
