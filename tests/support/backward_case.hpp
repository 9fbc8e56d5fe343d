#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>
#include <vector>

#include "tests/support/expert_case.hpp"

/// The experts' backward in plain fp64 loops, for tests of its kernels.
namespace moescope::test {

/// d/dx of reference_activation().
inline double reference_slope(Activation activation, double s) {
  switch (activation) {
    case Activation::kSilu: {
      const double e = 1 / (1 + std::exp(-s));
      return e * (1 + s * (1 - e));
    }
    case Activation::kGelu:
      return 0.5 * (1 + std::erf(s / std::numbers::sqrt2)) +
             s * std::exp(-s * s / 2) / std::sqrt(2 * std::numbers::pi);
    case Activation::kRelu:
      return s > 0 ? 1 : 0;
  }
  return 0;
}

/// An ExpertCase with an output gradient, and everything that its backward leaves.
struct BackwardCase {
  ExpertCase experts;
  std::vector<float> dy;      ///< [L, d]
  std::vector<double> z;      ///< [M]
  std::vector<double> gates;  ///< [M] gradients
  std::vector<double> p;      ///< [M]
  std::vector<double> q;      ///< [M]
  std::vector<double> dx;     ///< [L, d]
  std::vector<double> dw;     ///< [N, d], from p and q as the kernels are given them: rounded to fp32
  std::vector<double> dv;     ///< [N, d]

  explicit BackwardCase(const RoutingCase& c, std::uint64_t seed) : experts(ExpertCase::make(c, seed)) {
    const LayerShape& shape = experts.shape;
    const std::int64_t d = shape.hidden_size;
    const Philox random(seed, 14);
    for (std::int64_t i = 0; i < shape.num_tokens * d; ++i) {
      dy.push_back(round_to(shape.dtype, static_cast<float>(normal(random, static_cast<std::uint64_t>(i)))));
    }
    dx.resize(dy.size());
    dw.resize(static_cast<std::size_t>(shape.num_experts() * d));
    dv.resize(dw.size());
    for (std::int64_t pair = 0; pair < shape.num_pairs(); ++pair) {
      add_pair(pair / shape.top_k, pair);
    }
  }

  std::vector<float> floats(const std::vector<double>& values) const {
    return {values.begin(), values.end()};
  }

 private:
  void add_pair(std::int64_t token, std::int64_t pair) {
    const LayerShape& shape = experts.shape;
    const std::int64_t d = shape.hidden_size;
    const float* const x = experts.x.data() + token * d;
    const float* const g = dy.data() + token * d;
    const std::int64_t expert = experts.routing.expert_ids[static_cast<std::size_t>(pair)];
    const float* const w = experts.w_in.data() + expert * d;
    const float* const v = experts.w_out.data() + expert * d;
    double s = 0;
    double u = 0;
    for (std::int64_t i = 0; i < d; ++i) {
      s += static_cast<double>(x[i]) * w[i];
      u += static_cast<double>(g[i]) * v[i];
    }
    const double gate = experts.routing.gates[static_cast<std::size_t>(pair)];
    const double a = reference_activation(shape.activation, s);
    z.push_back(s);
    gates.push_back(u * a);
    p.push_back(gate * a);
    q.push_back(u * gate * reference_slope(shape.activation, s));
    const double p_given = static_cast<float>(p.back());
    const double q_given = static_cast<float>(q.back());
    for (std::int64_t i = 0; i < d; ++i) {
      dx[static_cast<std::size_t>(token * d + i)] += q.back() * w[i];
      dw[static_cast<std::size_t>(expert * d + i)] += q_given * x[i];
      dv[static_cast<std::size_t>(expert * d + i)] += p_given * g[i];
    }
  }
};

/// Shapes for the experts' backward: fewer and smaller than the forward's, whose splits they share.
inline std::vector<RoutingCase> backward_cases() {
  std::vector<RoutingCase> cases;
  for (const RoutingCase& c : expert_cases()) {
    if (c.shape.num_pairs() * c.shape.hidden_size <= (std::int64_t{1} << 23)) {
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace moescope::test
