// Product-key memory (Lample et al. 2019): y = sum over heads and selected (h, e) of softmax(S)_e * value_e.
#include "core/error.hpp"
#include "reference/product_keys.hpp"
#include "reference/rounding.hpp"
#include "reference/row_ops.hpp"
#include "reference/system_execution.hpp"

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

class Pkm final : public SystemExecution {
 public:
  explicit Pkm(const SystemInputs& inputs) : SystemExecution(inputs) {}

  ScheduleKind schedule_kind() const override { return ScheduleKind::kTokenCentric; }
  std::vector<StageMemory> memory() const override {
    auto memory = product_key_memory(shape());
    memory.push_back({Stage::kExpertCombine, y_bytes(shape())});
    return memory;
  }

 private:
  void compute(Stage stage) override {
    switch (stage) {
      case Stage::kRouterProject:
        logits_ = product_key_scores(inputs_, product_key_queries(inputs_));
        break;
      case Stage::kRouterSelect:
        routing_ = product_key_select(shape(), logits_);
        logits_ = {};
        break;
      case Stage::kExpertCombine:
        y_ = pkm_combine(inputs_, routing_);
        break;
      default:
        throw InternalError("pkm has no such stage");
    }
  }
};

}  // namespace

std::unique_ptr<LayerExecution> make_pkm(const SystemInputs& inputs) { return std::make_unique<Pkm>(inputs); }

}  // namespace moescope::reference
