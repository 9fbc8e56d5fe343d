#include "reference/oracle/system_oracle_training.hpp"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "reference/oracle/oracle_math.hpp"
#include "reference/oracle/oracle_mlp_training.hpp"
#include "reference/oracle/oracle_router_training.hpp"

namespace moescope {
namespace {

using oracle::add_scaled;
using oracle::dot;
using oracle::row_of;
using oracle::Vector;

/// A half query through its layer norm, if there is one.
struct HalfQuery {
  Vector normed;     ///< before the affine part; the query itself without a norm
  Vector q;          ///< what meets the keys
  double scale = 1;  ///< 1 / standard deviation
};

HalfQuery half_query(const SystemInputs& inputs, const Vector& x, std::int64_t first_row) {
  const auto& keys = *inputs.weights->keys;
  HalfQuery half;
  for (std::int64_t i = 0; i < inputs.shape.key_size; ++i) {
    half.normed.push_back(dot(x, row_of(keys.queries, first_row + i)));
  }
  half.q = half.normed;
  if (keys.norm_weight.empty()) {
    return half;
  }
  half.scale = oracle::standardize(half.normed);
  for (std::size_t i = 0; i < half.q.size(); ++i) {
    half.q[i] = half.normed[i] * keys.norm_weight[i] + keys.norm_bias[i];
  }
  return half;
}

class Step {
 public:
  Step(const SystemInputs& inputs, const HostTensor& dy) : inputs_(inputs), shape_(inputs.shape), dy_(dy) {
    const auto d = shape_.hidden_size;
    const auto& weights = *inputs.weights;
    result_.y.resize(static_cast<std::size_t>(shape_.num_tokens * d));
    result_.hidden_states = OracleGradient(shape_.num_tokens, d);
    const auto like = [&](const HostTensor& tensor) { return OracleGradient(tensor.rows(), tensor.cols()); };
    result_.router = like(weights.router);
    result_.w_in = like(weights.w_in);
    result_.w_out = like(weights.w_out);
    if (weights.keys) {
      result_.queries = like(weights.keys->queries);
      result_.keys = like(weights.keys->keys);
      result_.norm_weight = OracleGradient(1, std::ssize(weights.keys->norm_weight));
      result_.norm_bias = OracleGradient(1, std::ssize(weights.keys->norm_bias));
    }
    if (weights.experts) {
      for (auto* one : {&result_.expert_gate, &result_.expert_up, &result_.expert_down}) {
        *one = OracleGradient(shape_.num_experts * shape_.expert_size, d);
      }
    }
    if (weights.shared) {
      for (auto* one : {&result_.shared_gate, &result_.shared_up, &result_.shared_down}) {
        *one = OracleGradient(shape_.shared_size, d);
      }
    }
  }

  SystemTraining run(const Routing* selection) {
    const LayerShape row = shape_.row_shape();
    Routing& routing = result_.routing;
    routing = {shape_.num_queries(), row.grid_rows, row.grid_cols, {0}, {}, {}};
    if (!shape_.has_routing()) {
      routing.num_tokens = 0;
    }
    result_.gates =
        OracleGradient(1, shape_.has_routing() ? shape_.num_queries() * shape_.top_k_per_query() : 0);
    for (std::int64_t t = 0; t < shape_.num_tokens; ++t) {
      const Vector x = row_of(inputs_.hidden_states, t);
      const Vector g_y = row_of(dy_, t);
      for (std::int64_t head = 0; shape_.has_routing() && head < shape_.heads; ++head) {
        query(t, head, x, g_y, selection);
      }
      if (inputs_.weights->shared) {
        oracle::MlpGradients gradients{result_.shared_gate, result_.shared_up, result_.shared_down,
                                       oracle::checked_tokens({}, shape_.shared_size)};
        oracle::gated_mlp_backward(x, g_y, oracle::whole_mlp(*inputs_.weights->shared), shape_.activation, 1,
                                   token(t, nullptr), gradients);
      }
      const auto begin = result_.y.begin() + static_cast<std::ptrdiff_t>(t * shape_.hidden_size);
      result_.output_loss += dot(g_y, Vector(begin, begin + shape_.hidden_size));
    }
    return std::move(result_);
  }

 private:
  oracle::TokenGradients token(std::int64_t t, double* d_gate) {
    return {result_.y.data() + t * shape_.hidden_size, result_.hidden_states.row(t),
            &result_.hidden_states.term_squares, d_gate};
  }

  /// One query of one token: scores, selection, experts, and all of it back.
  void query(std::int64_t t, std::int64_t head, const Vector& x, const Vector& g_y,
             const Routing* selection) {
    OracleRouting scores;
    const LayerShape row = shape_.row_shape();
    scores.grid_rows = row.grid_rows;
    scores.grid_cols = row.grid_cols;
    std::array<HalfQuery, 2> halves;
    if (shape_.has_ffn_experts()) {
      scores.row_log_p = {0};
      scores.col_log_p = oracle::log_softmax_of_logits(x, inputs_.weights->router, {}).log_p;
    } else {
      for (std::size_t half = 0; half < 2; ++half) {
        halves[half] = half_query(inputs_, x, first_query_row(half, head));
        Vector& side = half == 0 ? scores.row_log_p : scores.col_log_p;
        for (std::int64_t key = 0; key < shape_.num_keys(); ++key) {
          side.push_back(dot(halves[half].q, row_of(inputs_.weights->keys->keys, key_row(head, key, half))));
        }
      }
    }
    std::vector<std::int32_t> ids;
    if (selection != nullptr) {
      const auto given = selection->ids_of(t * shape_.heads + head);
      ids.assign(given.begin(), given.end());
    } else {
      double threshold = 0;
      ids = oracle::top_k_of_all(scores, 0, shape_.top_k_per_query(), threshold);
    }
    const Vector gates = oracle::gates_of_scores(scores, 0, ids, shape_.gate_mode);
    const auto first = result_.routing.expert_ids.size();
    append(ids, gates);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      double d_gate = 0;
      expert(t, ids[k], gates[k], x, g_y, d_gate);
      result_.gates.values[first + k] = d_gate;
    }
    scores_backward(t, head, x, scores, halves, ids, gates,
                    {result_.gates.values.data() + first, ids.size()});
  }

  void append(const std::vector<std::int32_t>& ids, const Vector& gates) {
    Routing& routing = result_.routing;
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    routing.token_offsets.push_back(routing.num_pairs());
    for (const double gate : gates) {
      routing.gates.push_back(static_cast<float>(gate));
    }
  }

  void expert(std::int64_t t, std::int32_t id, double gate, const Vector& x, const Vector& g_y,
              double& d_gate) {
    const auto& weights = *inputs_.weights;
    const auto d = shape_.hidden_size;
    if (shape_.has_ffn_experts()) {
      const auto f = shape_.expert_size;
      const HostTensor& gate_up = weights.experts->gate_up;
      oracle::MlpGradients gradients{result_.expert_gate, result_.expert_up, result_.expert_down,
                                     oracle::checked_tokens({}, f), id * f};
      oracle::gated_mlp_backward(
          x, g_y, {gate_up, gate_up, weights.experts->down, f, id * 2 * f, id * 2 * f + f, id * d},
          shape_.activation, gate, token(t, &d_gate), gradients);
      return;
    }
    const Vector v = row_of(weights.w_out, id);
    const double u = dot(g_y, v);
    double a = 1;
    if (shape_.system == System::kPeer) {
      const Vector w = row_of(weights.w_in, id);
      const double z = dot(x, w);
      a = oracle::sigma(shape_.activation, z);
      const double q = u * gate * oracle::sigma_slope(shape_.activation, z);
      add_scaled(q, w, result_.hidden_states.row(t));
      add_scaled(q, x, result_.w_in.row(id));
    }
    d_gate = u * a;
    add_scaled(gate * a, v, result_.y.data() + t * d);
    add_scaled(gate * a, g_y, result_.w_out.row(id));
  }

  /// From the gates of one query to its scores, and on to the matrices that made them.
  void scores_backward(std::int64_t t, std::int64_t head, const Vector& x, const OracleRouting& scores,
                       const std::array<HalfQuery, 2>& halves, const std::vector<std::int32_t>& ids,
                       const Vector& gates, std::span<const double> d_gates) {
    Vector d_row(static_cast<std::size_t>(scores.grid_rows), 0.0);
    Vector d_col(static_cast<std::size_t>(scores.grid_cols), 0.0);
    double sum = 0;  // of gate * d(gate)
    for (std::size_t k = 0; k < ids.size(); ++k) {
      sum += gates[k] * d_gates[k];
    }
    for (std::size_t k = 0; k < ids.size(); ++k) {
      double d_score = gates[k] * d_gates[k];  // exp of the score
      if (shape_.gate_mode == GateMode::kSoftmax) {
        d_score -= gates[k] * sum;
      } else if (shape_.gate_mode == GateMode::kRelu) {
        d_score = gates[k] > 0 ? d_gates[k] : 0;
      }
      d_row[static_cast<std::size_t>(ids[k] / scores.grid_cols)] += d_score;
      d_col[static_cast<std::size_t>(ids[k] % scores.grid_cols)] += d_score;
    }
    if (shape_.has_ffn_experts()) {
      // Behind exp(score) stands a log-softmax; a softmax over the selected scores adds up to zero.
      const double through = shape_.gate_mode == GateMode::kProbability ? sum : 0;
      for (std::int64_t e = 0; e < shape_.num_experts; ++e) {
        const auto at = static_cast<std::size_t>(e);
        const double da = d_col[at] - std::exp(scores.col_log_p[at]) * through;
        add_scaled(da, x, result_.router.row(e));
        add_scaled(da, row_of(inputs_.weights->router, e), result_.hidden_states.row(t));
      }
      return;
    }
    half_backward(t, head, 0, x, halves[0], d_row);
    half_backward(t, head, 1, x, halves[1], d_col);
  }

  void half_backward(std::int64_t t, std::int64_t head, std::size_t half, const Vector& x,
                     const HalfQuery& query, const Vector& d_scores) {
    const auto& keys = *inputs_.weights->keys;
    Vector d_q(query.q.size(), 0.0);
    for (std::int64_t key = 0; key < shape_.num_keys(); ++key) {
      const double d_score = d_scores[static_cast<std::size_t>(key)];
      add_scaled(d_score, query.q, result_.keys.row(key_row(head, key, half)));
      add_scaled(d_score, row_of(keys.keys, key_row(head, key, half)), d_q.data());
    }
    if (!keys.norm_weight.empty()) {
      norm_backward(query, d_q);
    }
    for (std::size_t i = 0; i < d_q.size(); ++i) {
      const auto row = first_query_row(half, head) + static_cast<std::int64_t>(i);
      add_scaled(d_q[i], x, result_.queries.row(row));
      add_scaled(d_q[i], row_of(keys.queries, row), result_.hidden_states.row(t));
    }
  }

  /// d(query) behind the layer norm becomes the one before it.
  void norm_backward(const HalfQuery& query, Vector& d_q) {
    const auto& weight = inputs_.weights->keys->norm_weight;
    const auto count = static_cast<double>(d_q.size());
    double mean = 0;
    double mean_normed = 0;
    for (std::size_t i = 0; i < d_q.size(); ++i) {
      result_.norm_weight.values[i] += d_q[i] * query.normed[i];
      result_.norm_bias.values[i] += d_q[i];
      d_q[i] *= weight[i];
      mean += d_q[i] / count;
      mean_normed += d_q[i] * query.normed[i] / count;
    }
    for (std::size_t i = 0; i < d_q.size(); ++i) {
      d_q[i] = (d_q[i] - mean - query.normed[i] * mean_normed) * query.scale;
    }
  }

  std::int64_t first_query_row(std::size_t half, std::int64_t head) const {
    return (static_cast<std::int64_t>(half) * shape_.heads + head) * shape_.key_size;
  }
  std::int64_t key_row(std::int64_t head, std::int64_t key, std::size_t half) const {
    return (head * shape_.num_keys() + key) * 2 + static_cast<std::int64_t>(half);
  }

  const SystemInputs& inputs_;
  const SystemShape& shape_;
  const HostTensor& dy_;
  SystemTraining result_;
};

}  // namespace

SystemTraining system_training(const SystemInputs& inputs, const HostTensor& dy, const Routing* selection) {
  const auto& shape = inputs.shape;
  inputs.validate();
  if (dy.rows() != shape.num_tokens || dy.cols() != shape.hidden_size || dy.dtype() != shape.dtype) {
    throw InvalidArgument(
        "dy", fmt::format("[{}, {}] {}", dy.rows(), dy.cols(), to_string(dy.dtype())),
        fmt::format("must be [{}, {}] {}", shape.num_tokens, shape.hidden_size, to_string(shape.dtype)));
  }
  if (selection != nullptr) {
    LayerShape rows = shape.row_shape();
    rows.num_tokens = shape.num_queries();
    oracle::require_selection(*selection, rows);
  }
  return Step(inputs, dy).run(selection);
}

}  // namespace moescope
