#include "reference/oracle/oracle_math.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/base/error.hpp"

namespace moescope::oracle {

Vector row_of(const HostTensor& tensor, std::int64_t row) {
  if (tensor.dtype() == Dtype::kF32) {
    const auto values = tensor.f32().row_span(row);
    return {values.begin(), values.end()};
  }
  Vector values;
  for (const Bf16 value : tensor.bf16().row_span(row)) {
    values.push_back(to_float(value));
  }
  return values;
}

double dot(const Vector& a, const Vector& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

void add_scaled(double scale, const Vector& v, double* sum) {
  for (std::size_t k = 0; k < v.size(); ++k) {
    sum[k] += scale * v[k];
  }
}

Product product(const Vector& a, const Vector& b) {
  Product result;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double one = a[i] * b[i];
    result.value += one;
    result.magnitude += one * one;
    result.sizes += std::abs(one);
  }
  result.magnitude = std::sqrt(result.magnitude);
  return result;
}

double standardize(Vector& x) {
  constexpr double kNormEps = 1e-5;
  const auto count = static_cast<double>(x.size());
  double mean = 0;
  for (const double value : x) {
    mean += value / count;
  }
  double variance = 0;
  for (const double value : x) {
    variance += (value - mean) * (value - mean) / count;
  }
  const double scale = 1 / std::sqrt(variance + kNormEps);
  for (double& value : x) {
    value = (value - mean) * scale;
  }
  return scale;
}

double sigma(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1 + std::exp(-x));
    case Activation::kGelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::kRelu:
      return std::max(x, 0.0);
  }
  return x;
}

Marginal log_softmax_of_logits(const Vector& x, const HostTensor& weight, const std::vector<float>& bias) {
  Marginal marginal;
  Vector logits;
  for (std::int64_t i = 0; i < weight.rows(); ++i) {
    const Vector w = row_of(weight, i);
    double sum = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      sum += x[k] * w[k];
      marginal.partial_sum_scale = std::max(marginal.partial_sum_scale, std::abs(sum));
    }
    logits.push_back(sum + (bias.empty() ? 0.0 : bias[static_cast<std::size_t>(i)]));
  }
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const double s : logits) {
    sum += std::exp(s - max);
  }
  const double log_sum_exp = max + std::log(sum);
  for (const double s : logits) {
    marginal.log_p.push_back(s - log_sum_exp);
    marginal.score_scale = std::max({marginal.score_scale, std::abs(s), std::abs(s - log_sum_exp)});
  }
  return marginal;
}

std::vector<std::int32_t> top_k_of_all(const OracleRouting& routing, std::int64_t t, std::int64_t top_k,
                                       double& threshold) {
  struct Candidate {
    double score;
    std::int32_t id;
  };
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.id < b.id);
  };
  // The K best so far, the worst of them on top: N scores of a wide grid are gigabytes.
  std::vector<Candidate> best;
  for (std::int64_t id = 0; id < routing.grid_rows * routing.grid_cols; ++id) {
    const Candidate next{routing.score(t, static_cast<std::int32_t>(id)), static_cast<std::int32_t>(id)};
    if (std::ssize(best) == top_k) {
      if (!better(next, best.front())) {
        continue;
      }
      std::pop_heap(best.begin(), best.end(), better);
      best.pop_back();
    }
    best.push_back(next);
    std::push_heap(best.begin(), best.end(), better);
  }
  threshold = best.front().score;
  std::vector<std::int32_t> ids;
  for (const Candidate& one : best) {
    ids.push_back(one.id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

Vector gates_of_scores(const OracleRouting& routing, std::int64_t t, std::span<const std::int32_t> ids,
                       GateMode mode) {
  Vector gates;
  for (const auto id : ids) {
    const double score = routing.score(t, id);
    gates.push_back(mode == GateMode::kRelu ? std::max(score, 0.0) : std::exp(score));
  }
  if (mode == GateMode::kSoftmax) {
    const double sum = std::accumulate(gates.begin(), gates.end(), 0.0);
    for (double& gate : gates) {
      gate /= sum;
    }
  }
  return gates;
}

std::vector<std::int64_t> checked_tokens(const std::vector<std::int64_t>& tokens, std::int64_t num_tokens) {
  if (tokens.empty()) {
    std::vector<std::int64_t> all(static_cast<std::size_t>(num_tokens));
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (tokens[t] < 0 || tokens[t] >= num_tokens || (t > 0 && tokens[t] <= tokens[t - 1])) {
      throw InvalidArgument(fmt::format("tokens[{}]", t), fmt::to_string(tokens[t]),
                            fmt::format("must ascend and be in [0, {})", num_tokens));
    }
  }
  return tokens;
}

void require_selection(const Routing& selection, const LayerShape& shape) {
  if (selection.num_tokens != shape.num_tokens || selection.grid_rows != shape.grid_rows ||
      selection.grid_cols != shape.grid_cols) {
    throw InvalidArgument("selection",
                          fmt::format("{} tokens, grid {} x {}", selection.num_tokens, selection.grid_rows,
                                      selection.grid_cols),
                          fmt::format("must belong to {}", shape.label()));
  }
  selection.validate();
}

void append_query(OracleRouting& routing, std::span<const std::int32_t> ids, const Vector& gates) {
  routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
  routing.gates.insert(routing.gates.end(), gates.begin(), gates.end());
  routing.token_offsets.push_back(std::ssize(routing.expert_ids));
}

void add_gated_mlp(const Vector& x, const GatedMlp& mlp, Activation activation, double scale, Vector& y,
                   TokenRounding& rounding) {
  Vector hidden;
  Vector magnitudes;
  for (std::int64_t j = 0; j < mlp.size; ++j) {
    const Product gate = product(x, row_of(mlp.gate, mlp.first_gate + j));
    const Product up = product(x, row_of(mlp.up, mlp.first_up + j));
    const double activated = sigma(activation, gate.value);
    hidden.push_back(activated * up.value);
    magnitudes.push_back(gate.magnitude * std::abs(up.value) + std::abs(activated) * up.magnitude);
  }
  Vector row_squares(hidden.size(), 0.0);
  for (std::size_t k = 0; k < y.size(); ++k) {
    const Vector down = row_of(mlp.down, mlp.first_down + static_cast<std::int64_t>(k));
    const Product sum = product(hidden, down);
    y[k] += scale * sum.value;
    rounding.add_size(k, std::abs(scale) * sum.sizes);
    for (std::size_t j = 0; j < down.size(); ++j) {
      row_squares[j] += down[j] * down[j];
    }
  }
  for (std::size_t j = 0; j < hidden.size(); ++j) {
    rounding.add_term(scale * hidden[j], scale * magnitudes[j], row_squares[j]);
  }
}

void add_scored_row(double p, double magnitude, const Vector& v, Vector& y, TokenRounding& rounding) {
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] += p * v[i];
  }
  rounding.add(p, magnitude, v);
}

}  // namespace moescope::oracle
