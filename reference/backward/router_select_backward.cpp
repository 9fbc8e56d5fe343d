// router_select_backward: with h = gate * d(gate), A_t[r] the sum of h over the pairs of row r, B_t[r] the
// sum of gates there, and D_t the sum of all h:
//   softmax over the selected scores:  da_t[r] = A_t[r] - D_t B_t[r]; touched rows only, because log-softmax
//                                      passes a gradient whose sum is zero as it is;
//   exp of the score:                  da_t[r] = A_t[r] - D_t softmax(a_t)[r].
// Columns likewise. The auxiliary losses' gradients are added (core/layer/training.hpp).
#include <cmath>

#include "reference/backward/backward.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/pair_ops.hpp"

namespace moescope::reference {
namespace {

/// One side's gradient of one token.
template <class Part>
void side_gradient(GateMode mode, std::span<const std::int32_t> ids, std::span<const float> gates,
                   std::span<const float> gate_gradients, std::span<const float> log_p, const Part& part,
                   std::span<float> da, std::vector<float>& shares) {
  std::fill(da.begin(), da.end(), 0.0F);
  shares.assign(da.size(), 0.0F);
  float sum = 0;
  for (std::size_t k = 0; k < ids.size(); ++k) {
    const float h = gates[k] * gate_gradients[k];
    const auto r = static_cast<std::size_t>(part(ids[k]));
    da[r] += h;
    shares[r] += gates[k];
    sum += h;
  }
  for (std::size_t r = 0; r < da.size(); ++r) {
    da[r] -= sum * (mode == GateMode::kSoftmax ? shares[r] : std::exp(log_p[r]));
  }
}

HostTensor probabilities(const HostTensor& log_p) {
  HostTensor p = log_p.clone();
  const auto view = p.f32();
#pragma omp parallel for
  for (std::int64_t i = 0; i < view.size(); ++i) {
    view.data[i] = std::exp(view.data[i]);
  }
  return p;
}

/// Fractions of the batch's pairs as [Nr,Nc] and transposed.
std::pair<HostTensor, HostTensor> pair_fractions(const Routing& routing) {
  std::pair<HostTensor, HostTensor> f{HostTensor(Dtype::kF32, routing.grid_rows, routing.grid_cols),
                                      HostTensor(Dtype::kF32, routing.grid_cols, routing.grid_rows)};
  const auto loads = expert_loads(routing);
  for (std::int64_t i = 0; i < routing.grid_rows; ++i) {
    for (std::int64_t j = 0; j < routing.grid_cols; ++j) {
      const auto fraction =
          static_cast<float>(static_cast<double>(loads[static_cast<std::size_t>(i * routing.grid_cols + j)]) /
                             static_cast<double>(routing.num_pairs()));
      f.first.f32().row(i)[j] = fraction;
      f.second.f32().row(j)[i] = fraction;
    }
  }
  return f;
}

/// Adds scale * r * (F c - r . F c) of every token; returns the sum of r . F c.
double add_balance_side(const HostTensor& r, const HostTensor& f_c, double scale, HostTensor& da) {
  const auto p = r.f32();
  const auto weight = f_c.f32();
  const auto sum = da.f32();
  double both_sum = 0;
  for (std::int64_t t = 0; t < p.rows; ++t) {
    double both = 0;
    for (std::int64_t i = 0; i < p.cols; ++i) {
      both += static_cast<double>(p.row(t)[i]) * weight.row(t)[i];
    }
    for (std::int64_t i = 0; i < p.cols; ++i) {
      sum.row(t)[i] += static_cast<float>(scale * p.row(t)[i] * (weight.row(t)[i] - both));
    }
    both_sum += both;
  }
  return both_sum;
}

void add_balance_loss(const LayerShape& shape, double weight, const Routing& routing, const HostTensor& r,
                      const HostTensor& c, RouterSelectBackward& out) {
  const double scale =
      weight * static_cast<double>(shape.num_experts()) / static_cast<double>(shape.num_tokens);
  const auto [f, f_transposed] = pair_fractions(routing);
  out.balance_loss = scale * add_balance_side(r, matmul_nt(c, f), scale, out.logits.row);
  add_balance_side(c, matmul_nt(r, f_transposed), scale, out.logits.col);
}

/// d/d logit of weight / L * z^2 is 2 weight / L * z * softmax.
double add_z_loss(double weight, const HostTensor& r, const HostTensor& c, std::span<const float> row_lse,
                  std::span<const float> col_lse, RouterLogits& da) {
  const double scale = weight / static_cast<double>(r.rows());
  double loss = 0;
  for (std::int64_t t = 0; t < r.rows(); ++t) {
    const auto token = static_cast<std::size_t>(t);
    const double z = static_cast<double>(row_lse[token]) + col_lse[token];
    loss += scale * z * z;
    for (const auto& [p, sum] : {std::pair(r.f32().row_span(t), da.row.f32().row_span(t)),
                                 std::pair(c.f32().row_span(t), da.col.f32().row_span(t))}) {
      for (std::size_t i = 0; i < p.size(); ++i) {
        sum[i] += static_cast<float>(2 * scale * z * p[i]);
      }
    }
  }
  return loss;
}

}  // namespace

RouterSelectBackward router_select_backward(const LayerShape& shape, const RouterLogits& log_p,
                                            const Routing& routing, std::span<const float> gate_gradients,
                                            const AuxiliaryLosses& losses, std::span<const float> row_lse,
                                            std::span<const float> col_lse) {
  require_scores(routing, gate_gradients);
  RouterSelectBackward out;
  out.logits = {HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_rows),
                HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_cols)};
  const auto da = out.logits.row.f32();
  const auto db = out.logits.col.f32();
  const auto cols = static_cast<std::int32_t>(shape.grid_cols);
#pragma omp parallel
  {
    std::vector<float> shares;
#pragma omp for
    for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
      const auto ids = routing.ids_of(t);
      const auto gates = routing.gates_of(t);
      const auto gradients = gate_gradients.subspan(
          static_cast<std::size_t>(routing.token_offsets[static_cast<std::size_t>(t)]), ids.size());
      side_gradient(
          shape.gate_mode, ids, gates, gradients, log_p.row.f32().row_span(t),
          [&](std::int32_t id) { return id / cols; }, da.row_span(t), shares);
      side_gradient(
          shape.gate_mode, ids, gates, gradients, log_p.col.f32().row_span(t),
          [&](std::int32_t id) { return id % cols; }, db.row_span(t), shares);
    }
  }
  if (losses.any()) {
    const HostTensor r = probabilities(log_p.row);
    const HostTensor c = probabilities(log_p.col);
    if (losses.balance > 0) {
      add_balance_loss(shape, losses.balance, routing, r, c, out);
    }
    if (losses.z > 0) {
      out.z_loss = add_z_loss(losses.z, r, c, row_lse, col_lse, out.logits);
    }
  }
  return out;
}

}  // namespace moescope::reference
