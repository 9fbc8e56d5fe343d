#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"

/// The expert stage's gradients in fp64 by plain loops over pairs, for any part of tokens and experts.
namespace moescope::test {

/// Operands as floats of what storage holds.
struct GradientInputs {
  const LayerShape& shape;
  const Routing& routing;
  const std::vector<float>& x;      ///< [L, d]
  const std::vector<float>& dy;     ///< [L, d]
  const std::vector<float>& w_in;   ///< [N, d]
  const std::vector<float>& w_out;  ///< [N, d]
};

/// p, q, h of one pair, and the experts' rows that it has to do with.
struct PairReference {
  double p = 0;
  double q = 0;
  double h = 0;
};

inline double reference_slope(Activation activation, double z) {
  switch (activation) {
    case Activation::kSilu: {
      const double s = 1 / (1 + std::exp(-z));
      return s * (1 + z * (1 - s));
    }
    case Activation::kGelu:
      return 0.5 * (1 + std::erf(z / std::numbers::sqrt2)) +
             z * std::exp(-z * z / 2) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
    case Activation::kRelu:
      return z > 0 ? 1 : 0;
  }
  return 0;
}

inline double reference_value(Activation activation, double z) {
  switch (activation) {
    case Activation::kSilu:
      return z / (1 + std::exp(-z));
    case Activation::kGelu:
      return 0.5 * z * (1 + std::erf(z / std::numbers::sqrt2));
    case Activation::kRelu:
      return z > 0 ? z : 0;
  }
  return 0;
}

inline double row_product(const std::vector<float>& a, std::int64_t i, const std::vector<float>& b,
                          std::int64_t j, std::int64_t d) {
  double sum = 0;
  for (std::int64_t k = 0; k < d; ++k) {
    sum += static_cast<double>(a[static_cast<std::size_t>(i * d + k)]) *
           static_cast<double>(b[static_cast<std::size_t>(j * d + k)]);
  }
  return sum;
}

inline PairReference reference_pair(const GradientInputs& in, std::int64_t token, std::int64_t pair) {
  const std::int64_t d = in.shape.hidden_size;
  const std::int64_t expert = in.routing.expert_ids[static_cast<std::size_t>(pair)];
  const double gate = static_cast<double>(in.routing.gates[static_cast<std::size_t>(pair)]);
  const double z = row_product(in.x, token, in.w_in, expert, d);
  const double u = row_product(in.dy, token, in.w_out, expert, d);
  const double p = gate * reference_value(in.shape.activation, z);
  return {p, gate * u * reference_slope(in.shape.activation, z), p * u};
}

/// dx of one token, its logits' gradient [Nr+Nc], and what of it cancels: the size of the terms.
struct TokenReference {
  std::vector<double> dx;
  std::vector<double> logits;
  std::vector<double> terms;
};
inline TokenReference reference_token(const GradientInputs& in, std::int64_t token,
                                      const std::vector<float>& row_log_probs,
                                      const std::vector<float>& col_log_probs) {
  const std::int64_t d = in.shape.hidden_size;
  const std::int64_t rows = in.shape.grid_rows;
  const std::int64_t cols = in.shape.grid_cols;
  const auto both = static_cast<std::size_t>(rows + cols);
  TokenReference out{std::vector<double>(static_cast<std::size_t>(d)), std::vector<double>(both),
                     std::vector<double>(both)};
  std::vector<double> gates(both);
  double all = 0;
  const auto at = static_cast<std::size_t>(token);
  for (std::int64_t pair = in.routing.token_offsets[at]; pair < in.routing.token_offsets[at + 1]; ++pair) {
    const PairReference values = reference_pair(in, token, pair);
    const std::int64_t expert = in.routing.expert_ids[static_cast<std::size_t>(pair)];
    for (std::int64_t k = 0; k < d; ++k) {
      out.dx[static_cast<std::size_t>(k)] +=
          values.q * static_cast<double>(in.w_in[static_cast<std::size_t>(expert * d + k)]);
    }
    for (const std::int64_t side : {expert / cols, rows + expert % cols}) {
      out.logits[static_cast<std::size_t>(side)] += values.h;
      gates[static_cast<std::size_t>(side)] +=
          static_cast<double>(in.routing.gates[static_cast<std::size_t>(pair)]);
    }
    all += values.h;
  }
  for (std::size_t i = 0; i < both; ++i) {
    const auto side = static_cast<std::int64_t>(i);
    const float log_p = side < rows ? row_log_probs[static_cast<std::size_t>(token * rows + side)]
                                    : col_log_probs[static_cast<std::size_t>(token * cols + side - rows)];
    const double share =
        in.shape.gate_mode == GateMode::kSoftmax ? gates[i] : std::exp(static_cast<double>(log_p));
    out.terms[i] = std::abs(out.logits[i]) + std::abs(all * share);
    out.logits[i] -= all * share;
  }
  return out;
}

/// dW and dV of one expert.
struct ExpertReference {
  std::vector<double> w_in;
  std::vector<double> w_out;
};
inline ExpertReference reference_expert(const GradientInputs& in, std::int32_t expert) {
  const std::int64_t d = in.shape.hidden_size;
  ExpertReference out{std::vector<double>(static_cast<std::size_t>(d)),
                      std::vector<double>(static_cast<std::size_t>(d))};
  for (std::int64_t token = 0; token < in.shape.num_tokens; ++token) {
    const auto at = static_cast<std::size_t>(token);
    for (std::int64_t pair = in.routing.token_offsets[at]; pair < in.routing.token_offsets[at + 1]; ++pair) {
      if (in.routing.expert_ids[static_cast<std::size_t>(pair)] != expert) {
        continue;
      }
      const PairReference values = reference_pair(in, token, pair);
      for (std::int64_t k = 0; k < d; ++k) {
        const auto element = static_cast<std::size_t>(token * d + k);
        out.w_in[static_cast<std::size_t>(k)] += values.q * static_cast<double>(in.x[element]);
        out.w_out[static_cast<std::size_t>(k)] += values.p * static_cast<double>(in.dy[element]);
      }
    }
  }
  return out;
}

/// ||out - reference|| / ||scale||; infinite when anything is NaN, 0 where both are nothing but zeros.
class ErrorSum {
 public:
  void add(double value, double reference, double scale) {
    difference_ += (value - reference) * (value - reference);
    norm_ += scale * scale;
  }
  void add(double value, double reference) { add(value, reference, reference); }
  double error() const {
    const double error = std::sqrt(difference_) / std::sqrt(norm_);
    return difference_ == 0 && norm_ == 0 ? 0 : std::isfinite(error) ? error : HUGE_VAL;
  }

 private:
  double difference_ = 0;
  double norm_ = 0;
};

}  // namespace moescope::test
