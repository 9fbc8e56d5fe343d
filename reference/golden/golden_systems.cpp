// Golden vectors of the baselines: transformers' Mixtral and DeepSeek-V2 MoE blocks, and the PEER and PKM
// modules of the packages PEER-pytorch and product-key-memory.
#include <fmt/format.h>

#include <array>
#include <utility>

#include "core/base/error.hpp"
#include "reference/golden/golden_file.hpp"
#include "reference/oracle/system_oracle_training.hpp"

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

std::vector<float> as_floats(const OracleGradient& gradient) {
  return {gradient.values.begin(), gradient.values.end()};
}

/// Columns of `count` matrices [d, f] that the oracle has as rows [count * f, d].
std::vector<float> columns_of(const OracleGradient& gradient, std::int64_t count) {
  const auto f = gradient.rows / count;
  std::vector<float> values;
  for (std::int64_t matrix = 0; matrix < count; ++matrix) {
    for (std::int64_t k = 0; k < gradient.cols; ++k) {
      for (std::int64_t j = 0; j < f; ++j) {
        values.push_back(static_cast<float>(gradient.row(matrix * f + j)[k]));
      }
    }
  }
  return values;
}

/// Of every expert its gate rows, then its up rows.
std::vector<float> gate_up_of(const SystemTraining& step, std::int64_t num_experts) {
  const auto f = step.expert_gate.rows / num_experts;
  std::vector<float> values;
  for (std::int64_t expert = 0; expert < num_experts; ++expert) {
    for (const OracleGradient* one : {&step.expert_gate, &step.expert_up}) {
      values.insert(values.end(), one->row(expert * f), one->row((expert + 1) * f));
    }
  }
  return values;
}

/// The worst of the oracle's gradients of sum(dy * y) against the recorded ones, and where it is.
std::pair<double, std::string> gradient_error(const Golden& golden, const SystemInputs& inputs) {
  const SystemTraining step = system_training(inputs, golden.matrix("dy"), nullptr);
  std::pair<double, std::string> worst{-1, ""};
  const auto add = [&](const std::string& name, const std::vector<float>& ours) {
    const double error = max_relative_error(ours, golden.floats("grad." + name));
    if (!(error <= worst.first)) {
      worst = {error, "grad." + name};
    }
  };
  const auto& shape = inputs.shape;
  add("x", as_floats(step.hidden_states));
  if (shape.has_ffn_experts()) {
    add("gate.weight", as_floats(step.router));
    add("experts.gate_up_proj", gate_up_of(step, shape.num_experts));
    add("experts.down_proj", columns_of(step.expert_down, shape.num_experts));
  }
  if (shape.system == System::kDeepSeekMoe) {
    add("shared_experts.gate_proj.weight", as_floats(step.shared_gate));
    add("shared_experts.up_proj.weight", as_floats(step.shared_up));
    add("shared_experts.down_proj.weight", columns_of(step.shared_down, 1));
  }
  if (shape.has_product_keys()) {
    add("keys", as_floats(step.keys));
  }
  if (shape.system == System::kPeer) {
    add("to_queries.0.weight", as_floats(step.queries));
    add("weight_down_embed.weight", as_floats(step.w_in));
    add("weight_up_embed.weight", as_floats(step.w_out));
  }
  if (shape.system == System::kPkm) {
    add("to_queries.weight", as_floats(step.queries));
    add("norm.weight", as_floats(step.norm_weight));
    add("norm.bias", as_floats(step.norm_bias));
    add("values.weight", as_floats(step.w_out));
  }
  return worst;
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
    if (!relu) {
      inputs = read_inputs(golden, system);
    }
  }
  std::string where = "y";
  if (golden.file.has("dy")) {  // the oracle's: the mirror has no backward of these
    kind += ", gradients of the oracle";
    const auto [gradient, name] = gradient_error(golden, inputs);
    if (!(gradient <= error)) {
      error = gradient;
      where = name;
    }
  }
  return judged(std::move(kind), error, where);
}

}  // namespace moescope::detail
