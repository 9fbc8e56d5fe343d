#include "reference/oracle/gradient_start.hpp"

#include <algorithm>
#include <cmath>

#include "reference/oracle/checks.hpp"
#include "reference/oracle/stage_compare.hpp"

namespace moescope {
namespace {

/// A value for an element that is to be added to, of about unit scale: few bits, so that it is exact in bf16.
float start_value(std::int64_t row, std::int64_t col) {
  return static_cast<float>((row * 7 + col * 13) % 31 - 15) / 16.0F;
}

/// A power of two near the root of `as`'s mean square, times start_value().
HostTensor filled(const HostTensor& as) {
  double squares = 0;
  for (std::int64_t r = 0; r < as.rows(); ++r) {
    for (std::int64_t c = 0; c < as.cols(); ++c) {
      squares += static_cast<double>(as.at(r, c)) * as.at(r, c);
    }
  }
  const double mean = squares / static_cast<double>(std::max<std::int64_t>(1, as.size()));
  const auto scale = static_cast<float>(mean > 0 ? std::exp2(std::round(0.5 * std::log2(mean))) : 1);
  HostTensor tensor(Dtype::kF32, as.rows(), as.cols());
  for (std::int64_t r = 0; r < as.rows(); ++r) {
    for (std::int64_t c = 0; c < as.cols(); ++c) {
      tensor.f32().row(r)[c] = scale * start_value(r, c);
    }
  }
  return tensor.to(as.dtype());
}

}  // namespace

LayerGradients made_start(const LayerGradients& like) {
  const auto fill_bias = [](const std::vector<float>& as) {
    std::vector<float> bias;
    for (std::size_t i = 0; i < as.size(); ++i) {
      bias.push_back(start_value(1, static_cast<std::int64_t>(i)));
    }
    return bias;
  };
  LayerGradients start;
  start.w_in = filled(like.w_in);
  start.w_out = filled(like.w_out);
  start.router_row = filled(like.router_row);
  start.router_col = filled(like.router_col);
  start.row_bias = fill_bias(like.row_bias);
  start.col_bias = fill_bias(like.col_bias);
  if (like.shared) {
    start.shared = SharedMlpWeights{filled(like.shared->gate), filled(like.shared->up), filled(like.shared->down)};
  }
  return start;
}

LayerGradients zero_start(const LayerGradients& like) {
  const auto zeros = [](const HostTensor& as) { return HostTensor::zeros(as.dtype(), as.rows(), as.cols()); };
  LayerGradients start;
  start.w_in = zeros(like.w_in);
  start.w_out = zeros(like.w_out);
  start.router_row = zeros(like.router_row);
  start.router_col = zeros(like.router_col);
  start.row_bias.resize(like.row_bias.size());
  start.col_bias.resize(like.col_bias.size());
  if (like.shared) {
    start.shared =
        SharedMlpWeights{zeros(like.shared->gate), zeros(like.shared->up), zeros(like.shared->down)};
  }
  return start;
}

void add_start(OracleTraining& truth, const LayerGradients& start) {
  const auto add = [](OracleGradient& to, const HostTensor& from) {
    for (std::int64_t r = 0; r < to.rows; ++r) {
      for (std::int64_t c = 0; c < to.cols; ++c) {
        const double value = from.at(r, c);
        to.row(r)[c] += value;
        to.term_squares += value * value;
      }
    }
  };
  add(truth.w_in, gather_rows(start.w_in, truth.sample.experts));
  add(truth.w_out, gather_rows(start.w_out, truth.sample.experts));
  add(truth.router_row, start.router_row);
  add(truth.router_col, start.router_col);
  add(truth.row_bias, as_tensor(start.row_bias));
  add(truth.col_bias, as_tensor(start.col_bias));
  if (start.shared) {
    const auto& units = truth.sample.units;
    add(truth.shared_gate, gather_rows(start.shared->gate, units));
    add(truth.shared_up, gather_rows(start.shared->up, units));
    add(truth.shared_down, gather_rows(transposed(start.shared->down), units));
  }
}

void add_once(TrainingExecution& step, const LayerGradients& start) {
  step.set_gradients(start);
  for (const Stage stage : step.stages()) {
    step.enqueue(stage);
  }
  step.synchronize();
}

HostTensor transposed(const HostTensor& matrix) {
  HostTensor result(Dtype::kF32, matrix.cols(), matrix.rows());
  for (std::int64_t r = 0; r < matrix.rows(); ++r) {
    for (std::int64_t c = 0; c < matrix.cols(); ++c) {
      result.f32().row(c)[r] = matrix.at(r, c);
    }
  }
  return result;
}

}  // namespace moescope
