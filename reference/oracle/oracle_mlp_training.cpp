#include "reference/oracle/oracle_mlp_training.hpp"

#include "reference/oracle/oracle_router_training.hpp"

namespace moescope::oracle {
void gated_mlp_backward(const Vector& x, const Vector& dy, const GatedMlp& mlp, Activation activation,
                        double scale, const TokenGradients& token, MlpGradients& gradients) {
  const auto units = static_cast<std::size_t>(mlp.size);
  Vector gate(units);
  Vector up(units);
  Vector hidden(units);
  for (std::size_t j = 0; j < units; ++j) {
    gate[j] = dot(x, row_of(mlp.gate, mlp.first_gate + static_cast<std::int64_t>(j)));
    up[j] = dot(x, row_of(mlp.up, mlp.first_up + static_cast<std::int64_t>(j)));
    hidden[j] = sigma(activation, gate[j]) * up[j];
  }
  Vector back(units, 0.0);  // dy down
  for (std::size_t k = 0; k < dy.size(); ++k) {
    const Vector down = row_of(mlp.down, mlp.first_down + static_cast<std::int64_t>(k));
    add_scaled(dy[k], down, back.data());
    if (token.y != nullptr) {
      token.y[k] += scale * dot(hidden, down);
    }
  }
  if (token.d_scale != nullptr) {
    *token.d_scale += dot(hidden, back);
  }
  const double x_squares = dot(x, x);
  const double dy_squares = dot(dy, dy);
  for (std::size_t j = 0; j < units; ++j) {
    const double d_gate = scale * back[j] * up[j] * sigma_slope(activation, gate[j]);
    const double d_up = scale * back[j] * sigma(activation, gate[j]);
    if (token.dx != nullptr) {
      const Vector gate_row = row_of(mlp.gate, mlp.first_gate + static_cast<std::int64_t>(j));
      const Vector up_row = row_of(mlp.up, mlp.first_up + static_cast<std::int64_t>(j));
      add_scaled(d_gate, gate_row, token.dx);
      add_scaled(d_up, up_row, token.dx);
      if (token.dx_terms != nullptr) {
        *token.dx_terms += d_gate * d_gate * dot(gate_row, gate_row) + d_up * d_up * dot(up_row, up_row);
      }
    }
    if (gradients.index[j] < 0) {
      continue;
    }
    const auto row = gradients.first + gradients.index[j];
    add_scaled(d_gate, x, gradients.gate.row(row));
    add_scaled(d_up, x, gradients.up.row(row));
    add_scaled(scale * hidden[j], dy, gradients.down.row(row));
    gradients.gate.term_squares += d_gate * d_gate * x_squares;
    gradients.up.term_squares += d_up * d_up * x_squares;
    gradients.down.term_squares += scale * hidden[j] * scale * hidden[j] * dy_squares;
  }
}

}  // namespace moescope::oracle
