#include <fmt/format.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/systems/system.hpp"
#include "core/systems/system_making.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/deterministic_math.hpp"

namespace moescope {
namespace {

/// Checks tensors against one shape, so that every message says what they had to fit.
class Requirer {
 public:
  explicit Requirer(const SystemShape& shape) : shape_(shape) {}

  void tensor(const HostTensor& tensor, std::string_view name, std::int64_t rows, std::int64_t cols) const {
    if (tensor.rows() != rows || tensor.cols() != cols || tensor.dtype() != shape_.dtype) {
      throw InvalidArgument(
          name, fmt::format("[{}, {}] {}", tensor.rows(), tensor.cols(), to_string(tensor.dtype())),
          fmt::format("must be [{}, {}] {} for {}", rows, cols, to_string(shape_.dtype), shape_.label()));
    }
  }
  /// Present exactly when the system has it.
  void presence(bool present, std::string_view name, bool wanted) const {
    if (present != wanted) {
      throw InvalidArgument(name, present ? "present" : "absent",
                            fmt::format("must be {} for {}", wanted ? "present" : "absent", shape_.label()));
    }
  }

 private:
  const SystemShape& shape_;
};

/// pkm alone: a layer norm of every half query.
bool has_norm(const SystemShape& shape) { return traits_of(shape.system).experts == ExpertKind::kValue; }

void require_norm(const std::vector<float>& values, std::string_view name, const SystemShape& shape) {
  const bool may = has_norm(shape);
  if (!values.empty() && (!may || std::ssize(values) != shape.key_size)) {
    throw InvalidArgument(
        name, fmt::format("[{}]", values.size()),
        may ? fmt::format("must be empty or [{}]", shape.key_size) : "must be empty: only pkm has a norm");
  }
}

void require_product_keys(const Requirer& require, const ProductKeyWeights& keys, const SystemShape& shape) {
  require.tensor(keys.queries, "keys.queries", 2 * shape.heads * shape.key_size, shape.hidden_size);
  require.tensor(keys.keys, "keys.keys", shape.heads * shape.num_keys() * 2, shape.key_size);
  require_norm(keys.norm_weight, "keys.norm_weight", shape);
  require_norm(keys.norm_bias, "keys.norm_bias", shape);
  if (keys.norm_weight.size() != keys.norm_bias.size()) {
    throw InvalidArgument("keys.norm_bias", fmt::format("[{}]", keys.norm_bias.size()),
                          fmt::format("must be [{}] like keys.norm_weight", keys.norm_weight.size()));
  }
}

/// Makes tensors of N(0, deviation^2) in the shape's storage.
struct Maker {
  Dtype dtype;
  std::uint64_t seed;

  HostTensor operator()(std::int64_t rows, std::int64_t cols, double deviation, RandomStream stream) const {
    HostTensor tensor(dtype, rows, cols);
    fill_normal(tensor, deviation, seed, stream);
    return tensor;
  }
};

double inverse_root(std::int64_t n) { return 1 / std::sqrt(static_cast<double>(n)); }

/// Queries of unit variance; a score sums 2 key_size products, so keys of deviation STD / sqrt(2 key_size).
ProductKeyWeights make_product_keys(const SystemShape& shape, double score_deviation, const Maker& make) {
  ProductKeyWeights keys;
  keys.queries = make(2 * shape.heads * shape.key_size, shape.hidden_size, inverse_root(shape.hidden_size),
                      RandomStream::kRouterRow);
  keys.keys = make(shape.heads * shape.num_keys() * 2, shape.key_size,
                   score_deviation * inverse_root(2 * shape.key_size), RandomStream::kRouterCol);
  if (has_norm(shape)) {
    keys.norm_weight.assign(static_cast<std::size_t>(shape.key_size), 1.0F);
    keys.norm_bias.assign(static_cast<std::size_t>(shape.key_size), 0.0F);
  }
  return keys;
}

}  // namespace

void detail::require_system_memory(const SystemShape& shape) {
  const auto batch_bytes = shape.num_tokens * shape.hidden_size * dtype_bytes(shape.dtype);
  require_host_memory(shape.label(), static_cast<double>(shape.weight_bytes() + batch_bytes));
}

HostTensor detail::normal_tokens(const SystemShape& shape, std::uint64_t seed) {
  return Maker{shape.dtype, seed}(shape.num_tokens, shape.hidden_size, 1, RandomStream::kHiddenStates);
}

std::shared_ptr<SystemWeights> detail::make_system_weights(const SystemShape& shape, double score_deviation,
                                                           std::uint64_t seed, bool experts) {
  const Maker router{shape.dtype, seed};
  const auto make = [&](std::int64_t rows, std::int64_t cols, double deviation, RandomStream stream) {
    return experts ? router(rows, cols, deviation, stream) : HostTensor(shape.dtype, rows, cols);
  };
  const auto d = shape.hidden_size;
  auto weights = std::make_shared<SystemWeights>();
  if (shape.has_ffn_experts()) {
    const auto n = shape.num_experts;
    weights->router = router(n, d, score_deviation * inverse_root(d), RandomStream::kRouterRow);
    weights->experts = FfnExpertWeights{
        make(n * 2 * shape.expert_size, d, inverse_root(d), RandomStream::kExpertIn),
        make(n * d, shape.expert_size, inverse_root(shape.expert_size), RandomStream::kExpertOut)};
  }
  if (shape.has_product_keys()) {
    weights->keys = make_product_keys(shape, score_deviation, router);
    weights->w_out = make(shape.num_experts, d, inverse_root(d), RandomStream::kExpertOut);
  }
  if (shape.has_neurons()) {
    weights->w_in = make(shape.num_experts, d, inverse_root(d), RandomStream::kExpertIn);
  }
  if (shape.shared_size > 0) {
    weights->shared = SharedMlpWeights{
        make(shape.shared_size, d, inverse_root(d), RandomStream::kSharedGate),
        make(shape.shared_size, d, inverse_root(d), RandomStream::kSharedUp),
        make(d, shape.shared_size, inverse_root(shape.shared_size), RandomStream::kSharedDown)};
  }
  return weights;
}

void SystemInputs::validate() const {
  shape.validate();
  const SystemTraits& traits = traits_of(shape.system);
  const ScheduleOptions chosen = schedule_options();
  const bool has_rule = tokens.every() || chosen.kind == ScheduleKind::kExpertCentric;
  const bool is_own = schedule == ScheduleKind::kAuto && tokens.every();
  if (!is_own && !(traits.chooses_schedule && traits.has(chosen) && has_rule)) {
    throw InvalidArgument("schedule", to_string(chosen),
                          fmt::format("must be one of {} for {}", traits.schedule_names(), traits.name));
  }
  if (fixed_routing) {
    if (!shape.has_routing()) {
      throw InvalidArgument("fixed_routing", "present", fmt::format("must be absent for {}", shape.label()));
    }
    require_fixed_routing(*fixed_routing, shape.query_shape());
  }
  const Requirer require(shape);
  const auto d = shape.hidden_size;
  require.tensor(hidden_states, "hidden_states", shape.num_tokens, d);
  if (!weights) {
    throw InvalidArgument("weights", "null", "a layer needs weights");
  }
  if (shape.has_ffn_experts()) {
    require.tensor(weights->router, "router", shape.num_experts, d);
  }
  require.presence(weights->experts.has_value(), "experts", shape.has_ffn_experts());
  if (weights->experts) {
    require.tensor(weights->experts->gate_up, "experts.gate_up", shape.num_experts * 2 * shape.expert_size,
                   d);
    require.tensor(weights->experts->down, "experts.down", shape.num_experts * d, shape.expert_size);
  }
  require.presence(weights->keys.has_value(), "keys", shape.has_product_keys());
  if (weights->keys) {
    require_product_keys(require, *weights->keys, shape);
    require.tensor(weights->w_out, "w_out", shape.num_experts, d);
  }
  if (shape.has_neurons()) {
    require.tensor(weights->w_in, "w_in", shape.num_experts, d);
  }
  require.presence(weights->shared.has_value(), "shared", shape.shared_size > 0);
  if (weights->shared) {
    require.tensor(weights->shared->gate, "shared.gate", shape.shared_size, d);
    require.tensor(weights->shared->up, "shared.up", shape.shared_size, d);
    require.tensor(weights->shared->down, "shared.down", d, shape.shared_size);
  }
}

void SystemInputs::set_schedule(const ScheduleOptions& options) {
  schedule = options.kind;
  tokens = options.tokens;
}

ScheduleOptions SystemInputs::schedule_options() const {
  ScheduleOptions options = system_schedule(shape.system);
  options.kind = schedule == ScheduleKind::kAuto ? options.kind : schedule;
  options.tokens = tokens;
  return options;
}

SystemInputs make_system_inputs(const SystemShape& shape, double score_deviation, std::uint64_t seed) {
  shape.validate();
  if (!(score_deviation >= 0) || !std::isfinite(score_deviation)) {
    throw InvalidArgument("score_deviation", fmt::to_string(score_deviation),
                          "must be finite and not negative");
  }
  detail::require_system_memory(shape);
  SystemInputs inputs;
  inputs.shape = shape;
  inputs.hidden_states = detail::normal_tokens(shape, seed);
  inputs.weights = detail::make_system_weights(shape, score_deviation, seed);
  inputs.workload = fmt::format("gaussian:{}", score_deviation);
  inputs.seed = seed;
  return inputs;
}

}  // namespace moescope
