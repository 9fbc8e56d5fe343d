// Golden vectors of the baselines: transformers' Mixtral and DeepSeek-V2 MoE blocks, and the PEER and PKM
// modules of the packages PEER-pytorch and product-key-memory.
#include <fmt/format.h>

#include <array>
#include <utility>

#include "core/base/error.hpp"
#include "reference/golden/golden_file.hpp"

namespace moescope::detail {
namespace {

struct Fingerprint {
  System system;
  std::string_view array;
};
// DeepSeekMoE first: it has GShard's arrays too.
constexpr std::array kFingerprints = {Fingerprint{System::kDeepSeekMoe, "shared_experts.gate_proj.weight"},
                                      Fingerprint{System::kGShard, "experts.gate_up_proj"},
                                      Fingerprint{System::kPeer, "weight_down_embed.weight"},
                                      Fingerprint{System::kPkm, "values.weight"}};

/// experts.gate_up_proj [N, 2 f, d] and experts.down_proj [N, d, f].
void read_ffn_experts(const Golden& golden, SystemShape& shape, SystemWeights& weights) {
  const auto& gate_up = golden.extents("experts.gate_up_proj", 3);
  shape.num_experts = gate_up[0];
  shape.expert_size = gate_up[1] / 2;
  shape.top_k = golden.integer("top_k");
  weights.router = golden.matrix("gate.weight");
  weights.experts =
      FfnExpertWeights{golden.matrix("experts.gate_up_proj"), golden.matrix("experts.down_proj")};
}

void read_shared_expert(const Golden& golden, SystemShape& shape, SystemWeights& weights) {
  weights.shared = SharedMlpWeights{golden.matrix("shared_experts.gate_proj.weight"),
                                    golden.matrix("shared_experts.up_proj.weight"),
                                    golden.matrix("shared_experts.down_proj.weight")};
  shape.shared_size = weights.shared->gate.rows();
  shape.gate_mode = golden.integer("norm_topk_prob") != 0 ? GateMode::kSoftmax : GateMode::kProbability;
  if (const float scale = golden.number("routed_scaling_factor"); scale != 1) {
    throw FileError(golden.path, "routed_scaling_factor", fmt::format("is {}, must be 1", scale));
  }
}

/// keys [heads, n, 2, key_size]; the file's top_k counts for one head.
void read_product_keys(const Golden& golden, std::string_view queries, SystemShape& shape,
                       SystemWeights& weights) {
  const auto& keys = golden.extents("keys", 4);
  shape.heads = keys[0];
  shape.num_experts = keys[1] * keys[1];
  shape.key_size = keys[3];
  shape.top_k = golden.integer("top_k") * shape.heads;
  weights.keys = ProductKeyWeights{golden.matrix(std::string(queries)), golden.matrix("keys"), {}, {}};
}

SystemInputs read_inputs(const Golden& golden, System system) {
  SystemInputs inputs;
  auto weights = std::make_shared<SystemWeights>();
  inputs.hidden_states = golden.matrix("x");
  SystemShape& shape = inputs.shape;
  shape.system = system;
  shape.num_tokens = inputs.hidden_states.rows();
  shape.hidden_size = inputs.hidden_states.cols();
  shape.dtype = Dtype::kF32;
  if (shape.has_ffn_experts()) {
    read_ffn_experts(golden, shape, *weights);
  }
  if (system == System::kDeepSeekMoe) {
    read_shared_expert(golden, shape, *weights);
  }
  if (system == System::kPeer) {
    read_product_keys(golden, "to_queries.0.weight", shape, *weights);
    shape.activation = Activation::kGelu;
    weights->w_in = golden.matrix("weight_down_embed.weight");
    weights->w_out = golden.matrix("weight_up_embed.weight");
  }
  if (system == System::kPkm) {
    read_product_keys(golden, "to_queries.weight", shape, *weights);
    weights->keys->norm_weight = golden.floats("norm.weight");
    weights->keys->norm_bias = golden.floats("norm.bias");
    weights->w_out = golden.matrix("values.weight");
  }
  inputs.weights = std::move(weights);
  inputs.workload = golden.path;
  return inputs;
}

double replay_error(MoeBackend& backend, const SystemInputs& inputs, const HostTensor& expected) {
  const auto execution = backend.prepare_system(inputs);
  execution->run(L2State::kWarm);
  return max_relative_error(execution->output(), expected);
}

}  // namespace

std::optional<System> golden_system(const Golden& golden) {
  for (const auto& fingerprint : kFingerprints) {
    if (golden.file.has(std::string(fingerprint.array))) {
      return fingerprint.system;
    }
  }
  return std::nullopt;
}

GoldenResult replay_system(const Golden& golden, System system, MoeBackend& backend) {
  SystemInputs inputs = read_inputs(golden, system);
  const HostTensor expected = golden.matrix("y");
  std::string kind(to_string(system));
  double error = replay_error(backend, inputs, expected);
  if (system == System::kPeer) {
    // The file does not say which gates its module had; only the right ones can reproduce it. With relu gates
    // the published module keeps the best expert of every head, whatever its top_k.
    inputs.shape.gate_mode = GateMode::kRelu;
    inputs.shape.top_k = inputs.shape.heads;
    const double relu_error = replay_error(backend, inputs, expected);
    const bool relu = relu_error < error;
    kind += relu ? ", relu gates" : ", softmax gates";
    error = relu ? relu_error : error;
  }
  return judged(std::move(kind), error, "y");
}

}  // namespace moescope::detail
