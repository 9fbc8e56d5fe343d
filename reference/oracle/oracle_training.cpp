#include "reference/oracle/oracle_training.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.hpp"
#include "reference/oracle/oracle_math.hpp"
#include "reference/oracle/oracle_mlp_training.hpp"
#include "reference/oracle/oracle_router_training.hpp"

namespace moescope {
namespace {

using oracle::add_scaled;
using oracle::dot;
using oracle::row_of;
using oracle::sigma;
using oracle::sigma_slope;
using oracle::Vector;

/// Of every pair, CSR order; the names of training.hpp.
struct Pairs {
  Vector gate;
  Vector p;
  Vector q;
  Vector h;        ///< gate * d(gate): gradient of the score behind a probability gate
  Vector h_terms;  ///< sum of squares of the products that h is a sum of
};

/// Selection and fp64 gates of all tokens.
Vector route(const LayerInputs& inputs, const Routing* selection, OracleTraining& result) {
  const auto& shape = inputs.shape;
  if (inputs.fixed_routing) {
    result.routing = *inputs.fixed_routing;
    return {result.routing.gates.begin(), result.routing.gates.end()};
  }
  OracleRouting scores;
  scores.grid_rows = shape.grid_rows;
  scores.grid_cols = shape.grid_cols;
  scores.row_log_p = result.row.log_p;
  scores.col_log_p = result.col.log_p;
  Routing& routing = result.routing;
  routing = {shape.num_tokens, shape.grid_rows, shape.grid_cols, {0}, {}, {}};
  Vector gates;
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    std::vector<std::int32_t> ids;
    if (selection != nullptr) {
      const auto given = selection->ids_of(t);
      ids.assign(given.begin(), given.end());
    } else {
      double threshold = 0;
      ids = oracle::top_k_of_all(scores, t, shape.top_k, threshold);
    }
    const Vector own = oracle::gates_of_scores(scores, t, ids, shape.gate_mode);
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    routing.token_offsets.push_back(routing.num_pairs());
    gates.insert(gates.end(), own.begin(), own.end());
    for (const double gate : own) {
      routing.gates.push_back(static_cast<float>(gate));
    }
  }
  return gates;
}

/// Index of every batch token among the sampled ones, -1 for the others.
std::vector<std::int64_t> sample_index(const std::vector<std::int64_t>& sampled, std::int64_t count) {
  std::vector<std::int64_t> index(static_cast<std::size_t>(count), -1);
  for (std::size_t s = 0; s < sampled.size(); ++s) {
    index[static_cast<std::size_t>(sampled[s])] = static_cast<std::int64_t>(s);
  }
  return index;
}

/// y and dX of the routed experts for the sampled tokens, and every pair's p, q and h.
void experts_by_token(const LayerInputs& inputs, const HostTensor& dy, Pairs& pairs, OracleTraining& result) {
  const auto& shape = inputs.shape;
  const auto sampled = sample_index(result.sample.tokens, shape.num_tokens);
  Vector dx_terms(static_cast<std::size_t>(shape.num_tokens));
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    const Vector x = row_of(inputs.hidden_states, t);
    const Vector g_y = row_of(dy, t);
    const auto first = static_cast<std::size_t>(result.routing.token_offsets[static_cast<std::size_t>(t)]);
    const auto ids = result.routing.ids_of(t);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const Vector w = row_of(inputs.experts->w_in, ids[k]);
      const Vector v = row_of(inputs.experts->w_out, ids[k]);
      const std::size_t pair = first + k;
      const double gate = pairs.gate[pair];
      const double z = dot(x, w);
      const double a = sigma(shape.activation, z);
      const oracle::Product u = oracle::product(g_y, v);
      pairs.p[pair] = gate * a;
      pairs.q[pair] = u.value * gate * sigma_slope(shape.activation, z);
      pairs.h[pair] = gate * a * u.value;
      pairs.h_terms[pair] = gate * gate * a * a * u.magnitude * u.magnitude;
      result.gates.values[pair] = a * u.value;
      const auto s = sampled[static_cast<std::size_t>(t)];
      if (s >= 0) {
        add_scaled(pairs.p[pair], v, result.y.data() + s * shape.hidden_size);
        add_scaled(pairs.q[pair], w, result.hidden_states.row(s));
        dx_terms[static_cast<std::size_t>(t)] += pairs.q[pair] * pairs.q[pair] * dot(w, w);
      }
    }
  }
  for (std::size_t pair = 0; pair < pairs.gate.size(); ++pair) {
    const double gate = pairs.gate[pair];
    result.gates.term_squares += gate == 0 ? 0 : pairs.h_terms[pair] / (gate * gate);
  }
  for (const double terms : dx_terms) {
    result.hidden_states.term_squares += terms;
  }
}

/// dW and dV of the sampled experts: sums over the tokens that went there.
void experts_by_expert(const LayerInputs& inputs, const HostTensor& dy, const Pairs& pairs,
                       OracleTraining& result) {
  const auto& experts = result.sample.experts;
  const auto index = sample_index(experts, inputs.shape.num_experts());
  for (std::int64_t t = 0; t < inputs.shape.num_tokens; ++t) {
    const Vector x = row_of(inputs.hidden_states, t);
    const Vector g_y = row_of(dy, t);
    const double x_squares = dot(x, x);
    const double dy_squares = dot(g_y, g_y);
    const auto first = static_cast<std::size_t>(result.routing.token_offsets[static_cast<std::size_t>(t)]);
    const auto ids = result.routing.ids_of(t);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const auto s = index[static_cast<std::size_t>(ids[k])];
      if (s < 0) {
        continue;
      }
      const double p = pairs.p[first + k];
      const double q = pairs.q[first + k];
      add_scaled(q, x, result.w_in.row(s));
      add_scaled(p, g_y, result.w_out.row(s));
      result.w_in.term_squares += q * q * x_squares;
      result.w_out.term_squares += p * p * dy_squares;
    }
  }
}

/// Gradients of the logits of one side from those of the gates: `part(id)` is the row or column of an expert.
template <class Part>
void select_backward(const LayerInputs& inputs, const Pairs& pairs, const OracleSide& side, const Part& part,
                     const Routing& routing, OracleGradient& logits, Vector& term_squares) {
  const auto n = logits.cols;
  for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
    const auto first = static_cast<std::size_t>(routing.token_offsets[static_cast<std::size_t>(t)]);
    const auto ids = routing.ids_of(t);
    double* da = logits.row(t);
    double* terms = term_squares.data() + t * n;
    Vector gate_sums(static_cast<std::size_t>(n));
    double h_sum = 0;
    double h_squares = 0;
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const double h = pairs.h[first + k];
      const auto r = part(ids[k]);
      da[r] += h;
      terms[r] += std::max(h * h, pairs.h_terms[first + k]);
      gate_sums[static_cast<std::size_t>(r)] += pairs.gate[first + k];
      h_sum += h;
      h_squares += std::max(h * h, pairs.h_terms[first + k]);
    }
    for (std::int64_t r = 0; r < n; ++r) {
      // Softmax over the selected scores; or exp of the score, whose log-softmax reaches every logit.
      const double share = inputs.shape.gate_mode == GateMode::kSoftmax
                               ? gate_sums[static_cast<std::size_t>(r)]
                               : std::exp(side.log_p[static_cast<std::size_t>(t * n + r)]);
      da[r] -= share * h_sum;
      terms[r] += share * share * h_squares;
    }
  }
}

void router_backward(const LayerInputs& inputs, const TrainingOptions& options, const Pairs& pairs,
                     OracleTraining& result) {
  const auto& shape = inputs.shape;
  result.row_logits = OracleGradient(shape.num_tokens, shape.grid_rows);
  result.col_logits = OracleGradient(shape.num_tokens, shape.grid_cols);
  Vector row_terms(result.row_logits.values.size());
  Vector col_terms(result.col_logits.values.size());
  const auto cols = shape.grid_cols;
  select_backward(
      inputs, pairs, result.row, [&](std::int32_t id) { return id / cols; }, result.routing,
      result.row_logits, row_terms);
  select_backward(
      inputs, pairs, result.col, [&](std::int32_t id) { return id % cols; }, result.routing,
      result.col_logits, col_terms);
  if (options.losses.balance > 0) {
    oracle::add_balance_loss(shape, options.losses.balance, result);
  }
  if (options.losses.z > 0) {
    oracle::add_z_loss(shape, options.losses.z, result);
  }
  for (const double terms : row_terms) {
    result.row_logits.term_squares += terms;
  }
  for (const double terms : col_terms) {
    result.col_logits.term_squares += terms;
  }
  auto row = oracle::project_backward(inputs, inputs.router.row, result.row, result.row_logits, row_terms,
                                      options.batch_norm, result);
  auto col = oracle::project_backward(inputs, inputs.router.col, result.col, result.col_logits, col_terms,
                                      options.batch_norm, result);
  result.router_row = std::move(row.weight);
  result.router_col = std::move(col.weight);
  if (!inputs.router.row_bias.empty()) {
    result.row_bias = std::move(row.bias);
  }
  if (!inputs.router.col_bias.empty()) {
    result.col_bias = std::move(col.bias);
  }
}

void shared_mlp(const LayerInputs& inputs, const HostTensor& dy, OracleTraining& result) {
  const auto& shape = inputs.shape;
  const oracle::GatedMlp mlp = oracle::whole_mlp(*inputs.experts->shared);
  const auto units = static_cast<std::int64_t>(result.sample.units.size());
  result.shared_gate = OracleGradient(units, shape.hidden_size);
  result.shared_up = OracleGradient(units, shape.hidden_size);
  result.shared_down = OracleGradient(units, shape.hidden_size);
  oracle::MlpGradients gradients{result.shared_gate, result.shared_up, result.shared_down,
                                 sample_index(result.sample.units, shape.shared_size)};
  const auto sampled = sample_index(result.sample.tokens, shape.num_tokens);
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    const auto s = sampled[static_cast<std::size_t>(t)];
    oracle::TokenGradients token{s < 0 ? nullptr : result.y.data() + s * shape.hidden_size,
                                 s < 0 ? nullptr : result.hidden_states.row(s),
                                 &result.hidden_states.term_squares, nullptr};
    oracle::gated_mlp_backward(row_of(inputs.hidden_states, t), row_of(dy, t), mlp, shape.activation, 1,
                               token, gradients);
  }
}

OracleSample whole(const LayerInputs& inputs, const OracleSample& asked) {
  return {oracle::checked_tokens(asked.tokens, inputs.shape.num_tokens),
          oracle::checked_tokens(asked.experts, inputs.shape.num_experts()),
          oracle::checked_tokens(asked.units, inputs.shape.shared_size)};
}

}  // namespace

OracleTraining oracle_training(const LayerInputs& inputs, const HostTensor& dy, const Routing* selection,
                               const TrainingOptions& options, const OracleSample& sample) {
  const auto& shape = inputs.shape;
  validate_training(inputs, dy, options);
  if (selection != nullptr && !inputs.fixed_routing) {
    oracle::require_selection(*selection, shape);
  }
  OracleTraining result;
  result.sample = whole(inputs, sample);
  const auto d = shape.hidden_size;
  result.y.resize(result.sample.tokens.size() * static_cast<std::size_t>(d));
  result.hidden_states = OracleGradient(std::ssize(result.sample.tokens), d);
  result.w_in = OracleGradient(std::ssize(result.sample.experts), d);
  result.w_out = OracleGradient(std::ssize(result.sample.experts), d);
  if (!inputs.fixed_routing) {
    result.row = oracle::router_side(inputs.hidden_states, inputs.router.row, inputs.router.row_bias,
                                     options.batch_norm);
    result.col = oracle::router_side(inputs.hidden_states, inputs.router.col, inputs.router.col_bias,
                                     options.batch_norm);
  }
  Pairs pairs;
  pairs.gate = route(inputs, selection, result);
  for (Vector* one : {&pairs.p, &pairs.q, &pairs.h, &pairs.h_terms}) {
    one->resize(pairs.gate.size());
  }
  result.gates = OracleGradient(1, result.routing.num_pairs());
  experts_by_token(inputs, dy, pairs, result);
  experts_by_expert(inputs, dy, pairs, result);
  if (!inputs.fixed_routing) {
    router_backward(inputs, options, pairs, result);
  }
  if (inputs.experts->shared) {
    shared_mlp(inputs, dy, result);
  }
  for (std::size_t s = 0; s < result.sample.tokens.size(); ++s) {
    const auto begin = result.y.begin() + static_cast<std::ptrdiff_t>(s) * d;
    result.output_loss += dot(row_of(dy, result.sample.tokens[s]), Vector(begin, begin + d));
  }
  return result;
}

RunningNorm updated_norm(const RunningNorm& before, const OracleSide& side, std::int64_t num_tokens,
                         double momentum) {
  RunningNorm after = before;
  const auto count = static_cast<double>(num_tokens);
  for (std::size_t r = 0; r < side.mean.size(); ++r) {
    after.mean[r] += momentum * (side.mean[r] - before.mean[r]);
    after.variance[r] += momentum * (side.variance[r] * count / (count - 1) - before.variance[r]);
  }
  return after;
}

}  // namespace moescope
