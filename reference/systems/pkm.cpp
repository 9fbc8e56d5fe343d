// Product-key memory (Lample et al. 2019): y = sum over heads and selected (h, e) of softmax(S)_e * value_e.
#include "reference/stages/rounding.hpp"
#include "reference/stages/row_ops.hpp"
#include "reference/systems/product_keys.hpp"

namespace moescope::reference {
namespace {

/// [L,d] fp32; every token adds its values head by head, by ascending id.
HostTensor pkm_combine(const SystemInputs& inputs, const Routing& routing) {
  const auto& shape = inputs.shape;
  HostTensor out = HostTensor::zeros(Dtype::kF32, shape.num_tokens, shape.hidden_size);
  const auto y = out.f32();
  with_storage_type(shape.dtype, [&]<class T>(T) {
    const auto values = view_as<T>(inputs.weights->w_out);
#pragma omp parallel for schedule(dynamic)
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto pairs = pairs_of_token(shape, routing, token);
      add_weighted_rows<T>(
          pairs.gates, [&](std::size_t q) { return values.row(pairs.expert_ids[q]); }, values.cols,
          y.row(token));
    }
  });
  return out;
}

class Pkm final : public ProductKeyExecution {
 public:
  explicit Pkm(const SystemInputs& inputs) : ProductKeyExecution(inputs) {}

  std::vector<StageMemory> memory() const override {
    auto memory = ProductKeyExecution::memory();
    memory.push_back({Stage::kExpertCombine, y_bytes(shape())});
    return memory;
  }

 private:
  void compute(Stage stage) override {
    if (stage != Stage::kExpertCombine) {
      ProductKeyExecution::compute(stage);
      return;
    }
    y_ = pkm_combine(inputs_, routing_);
  }
};

}  // namespace

std::unique_ptr<LayerExecution> make_pkm(const SystemInputs& inputs) { return std::make_unique<Pkm>(inputs); }

}  // namespace moescope::reference
