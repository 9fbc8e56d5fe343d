#include "reference/oracle/oracle_router_training.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace moescope::oracle {
namespace {

double squares(const Vector& v) { return dot(v, v); }

std::size_t at(std::int64_t row, std::int64_t cols, std::int64_t col) {
  return static_cast<std::size_t>(row * cols + col);
}

/// Centres and scales every column over the tokens.
void normalise(OracleSide& side, std::int64_t tokens, std::int64_t n, double eps) {
  const auto count = static_cast<double>(tokens);
  side.mean.assign(static_cast<std::size_t>(n), 0.0);
  side.variance.assign(static_cast<std::size_t>(n), 0.0);
  for (std::int64_t r = 0; r < n; ++r) {
    const auto column = static_cast<std::size_t>(r);
    for (std::int64_t t = 0; t < tokens; ++t) {
      side.mean[column] += side.logits[at(t, n, r)] / count;
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      const double off = side.logits[at(t, n, r)] - side.mean[column];
      side.variance[column] += off * off / count;
    }
    for (std::int64_t t = 0; t < tokens; ++t) {
      double& logit = side.logits[at(t, n, r)];
      logit = (logit - side.mean[column]) / std::sqrt(side.variance[column] + eps);
    }
  }
}

/// Of logits that went through normalise(): da_raw = (da - mean(da) - ahat mean(da ahat)) / sigma.
void normalise_backward(const OracleSide& side, double eps, OracleGradient& da, Vector& term_squares) {
  const auto count = static_cast<double>(da.rows);
  for (std::int64_t r = 0; r < da.cols; ++r) {
    double mean = 0;
    double mean_ahat = 0;
    double mean_terms = 0;
    double mean_ahat_terms = 0;
    for (std::int64_t t = 0; t < da.rows; ++t) {
      const auto i = at(t, da.cols, r);
      const double ahat = side.logits[i];
      mean += da.values[i] / count;
      mean_ahat += da.values[i] * ahat / count;
      mean_terms += term_squares[i] / (count * count);
      mean_ahat_terms += term_squares[i] * ahat * ahat / (count * count);
    }
    const double variance = side.variance[static_cast<std::size_t>(r)] + eps;
    for (std::int64_t t = 0; t < da.rows; ++t) {
      const auto i = at(t, da.cols, r);
      const double ahat = side.logits[i];
      da.values[i] = (da.values[i] - mean - ahat * mean_ahat) / std::sqrt(variance);
      term_squares[i] = (term_squares[i] + mean_terms + ahat * ahat * mean_ahat_terms) / variance;
    }
  }
}

}  // namespace

double sigma_slope(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu: {
      const double s = 1 / (1 + std::exp(-x));
      return s * (1 + x * (1 - s));
    }
    case Activation::kGelu:  // Phi(x) + x phi(x)
      return 0.5 * std::erfc(-x / std::sqrt(2.0)) +
             x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    case Activation::kRelu:
      return x > 0 ? 1 : 0;
  }
  return 1;
}

OracleSide router_side(const HostTensor& hidden_states, const HostTensor& weight,
                       const std::vector<float>& bias, const std::optional<BatchNorm>& norm) {
  const auto tokens = hidden_states.rows();
  const auto n = weight.rows();
  OracleSide side;
  side.logits.resize(static_cast<std::size_t>(tokens * n));
  std::vector<Vector> rows;
  for (std::int64_t r = 0; r < n; ++r) {
    rows.push_back(row_of(weight, r));
  }
#pragma omp parallel for
  for (std::int64_t t = 0; t < tokens; ++t) {
    const Vector x = row_of(hidden_states, t);
    for (std::int64_t r = 0; r < n; ++r) {
      const auto row = static_cast<std::size_t>(r);
      side.logits[at(t, n, r)] = dot(x, rows[row]) + (bias.empty() ? 0.0 : bias[row]);
    }
  }
  if (norm) {
    normalise(side, tokens, n, norm->eps);
  }
  side.log_p = side.logits;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::span logits(side.log_p.data() + t * n, static_cast<std::size_t>(n));
    const double max = *std::ranges::max_element(logits);
    double sum = 0;
    for (const double s : logits) {
      sum += std::exp(s - max);
    }
    side.lse.push_back(max + std::log(sum));
    for (double& s : logits) {
      s -= side.lse.back();
    }
  }
  return side;
}

void add_balance_loss(const LayerShape& shape, double weight, OracleTraining& result) {
  const auto rows = shape.grid_rows;
  const auto cols = shape.grid_cols;
  Vector fractions;
  for (const auto load : expert_loads(result.routing)) {
    fractions.push_back(static_cast<double>(load) / static_cast<double>(result.routing.num_pairs()));
  }
  const double scale =
      weight * static_cast<double>(shape.num_experts()) / static_cast<double>(shape.num_tokens);
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    Vector r(static_cast<std::size_t>(rows));
    Vector c(static_cast<std::size_t>(cols));
    for (std::int64_t i = 0; i < rows; ++i) {
      r[static_cast<std::size_t>(i)] = std::exp(result.row.log_p[at(t, rows, i)]);
    }
    for (std::int64_t j = 0; j < cols; ++j) {
      c[static_cast<std::size_t>(j)] = std::exp(result.col.log_p[at(t, cols, j)]);
    }
    Vector f_c(r.size(), 0.0);
    Vector f_r(c.size(), 0.0);
    for (std::size_t i = 0; i < r.size(); ++i) {
      for (std::size_t j = 0; j < c.size(); ++j) {
        f_c[i] += fractions[i * c.size() + j] * c[j];
        f_r[j] += fractions[i * c.size() + j] * r[i];
      }
    }
    const double both = dot(r, f_c);
    result.balance_loss += scale * both;
    for (std::size_t i = 0; i < r.size(); ++i) {
      result.row_logits.row(t)[i] += scale * r[i] * (f_c[i] - both);
    }
    for (std::size_t j = 0; j < c.size(); ++j) {
      result.col_logits.row(t)[j] += scale * c[j] * (f_r[j] - both);
    }
  }
}

void add_z_loss(const LayerShape& shape, double weight, OracleTraining& result) {
  const double scale = weight / static_cast<double>(shape.num_tokens);
  for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
    const auto token = static_cast<std::size_t>(t);
    const double z = result.row.lse[token] + result.col.lse[token];
    result.z_loss += scale * z * z;
    for (std::int64_t i = 0; i < shape.grid_rows; ++i) {
      result.row_logits.row(t)[i] += 2 * scale * z * std::exp(result.row.log_p[at(t, shape.grid_rows, i)]);
    }
    for (std::int64_t j = 0; j < shape.grid_cols; ++j) {
      result.col_logits.row(t)[j] += 2 * scale * z * std::exp(result.col.log_p[at(t, shape.grid_cols, j)]);
    }
  }
}

SideGradients project_backward(const LayerInputs& inputs, const HostTensor& weight, const OracleSide& side,
                               const OracleGradient& logits, const Vector& term_squares,
                               const std::optional<BatchNorm>& norm, OracleTraining& result) {
  const auto d = inputs.shape.hidden_size;
  OracleGradient da = logits;
  Vector terms = term_squares;
  if (norm) {
    normalise_backward(side, norm->eps, da, terms);
  }
  for (std::size_t i = 0; i < terms.size(); ++i) {
    terms[i] = std::max(terms[i], da.values[i] * da.values[i]);  // da itself may be rounded
  }
  SideGradients made{OracleGradient(da.cols, d), OracleGradient(1, da.cols)};
  for (std::int64_t t = 0; t < da.rows; ++t) {
    const Vector x = row_of(inputs.hidden_states, t);
    const double x_squares = squares(x);
    for (std::int64_t r = 0; r < da.cols; ++r) {
      const double value = da.row(t)[r];
      for (std::int64_t k = 0; k < d; ++k) {
        made.weight.row(r)[k] += value * x[static_cast<std::size_t>(k)];
      }
      made.bias.values[static_cast<std::size_t>(r)] += value;
      made.weight.term_squares += terms[at(t, da.cols, r)] * x_squares;
      made.bias.term_squares += terms[at(t, da.cols, r)];
    }
  }
  for (std::int64_t r = 0; r < da.cols; ++r) {
    const Vector w = row_of(weight, r);
    const double w_squares = squares(w);
    for (std::size_t s = 0; s < result.sample.tokens.size(); ++s) {
      const auto t = result.sample.tokens[s];
      double* dx = result.hidden_states.row(static_cast<std::int64_t>(s));
      for (std::size_t k = 0; k < w.size(); ++k) {
        dx[k] += da.row(t)[r] * w[k];
      }
      result.hidden_states.term_squares += terms[at(t, da.cols, r)] * w_squares;
    }
  }
  return made;
}

}  // namespace moescope::oracle
