// PEER (He 2024): product keys over experts of one hidden neuron,
// y = sum over heads and selected (h, e) of gate(S)_e * act(x . w_in[e]) * w_out[e].
#include <omp.h>

#include <vector>

#include "reference/stages/activation.hpp"
#include "reference/stages/rounding.hpp"
#include "reference/stages/row_ops.hpp"
#include "reference/systems/product_keys.hpp"

namespace moescope::reference {
namespace {

/// [L,d] fp32; every token walks its pairs head by head, by ascending id. An expert that two heads selected
/// is run for each.
HostTensor peer_experts(const SystemInputs& inputs, const Routing& routing) {
  const auto& shape = inputs.shape;
  struct Scratch {
    std::vector<float> x;
    std::vector<float> p;
  };
  const int threads = omp_get_max_threads();
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads),
                               {std::vector<float>(static_cast<std::size_t>(shape.hidden_size)),
                                std::vector<float>(static_cast<std::size_t>(shape.top_k))});
  HostTensor out = HostTensor::zeros(Dtype::kF32, shape.num_tokens, shape.hidden_size);
  const auto y = out.f32();
  with_storage_type(shape.dtype, [&]<class T>(T) {
    const auto x = view_as<T>(inputs.hidden_states);
    const auto w_in = view_as<T>(inputs.weights->w_in);
    const auto w_out = view_as<T>(inputs.weights->w_out);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
      const auto pairs = pairs_of_token(shape, routing, token);
      load_row(x.row(token), x.cols, mine.x.data());
      for (std::size_t q = 0; q < pairs.gates.size(); ++q) {
        const float product = dot(mine.x.data(), w_in.row(pairs.expert_ids[q]), w_in.cols);
        mine.p[q] = pairs.gates[q] * activate(shape.activation, product);
      }
      add_weighted_rows<T>(
          mine.p, [&](std::size_t q) { return w_out.row(pairs.expert_ids[q]); }, w_out.cols, y.row(token));
    }
  });
  return out;
}

class Peer final : public ProductKeyExecution {
 public:
  explicit Peer(const SystemInputs& inputs) : ProductKeyExecution(inputs) {}

  std::vector<StageMemory> memory() const override {
    auto memory = ProductKeyExecution::memory();
    const auto scratch =
        omp_get_max_threads() * (shape().hidden_size + shape().top_k) * dtype_bytes(Dtype::kF32);
    memory.push_back({Stage::kExperts, y_bytes(shape()) + scratch});
    return memory;
  }

 private:
  void compute(Stage stage) override {
    if (stage != Stage::kExperts) {
      ProductKeyExecution::compute(stage);
      return;
    }
    y_ = peer_experts(inputs_, routing_);
  }
};

}  // namespace

std::unique_ptr<LayerExecution> make_peer(const SystemInputs& inputs) {
  return std::make_unique<Peer>(inputs);
}

}  // namespace moescope::reference
