#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/workload/philox.hpp"
#include "tests/support/routings.hpp"

/// Router logits [L, Nr+Nc] and shapes for tests of the selection.
namespace moescope::test {

/// One large logit per side makes the sum of exponentials exactly 1, so log-softmax equals the logits, and
/// multiples of 1/4 add exactly: the scores are known to the last bit, with many ties.
inline std::vector<float> exact_logits(const LayerShape& shape, std::uint64_t seed, double levels) {
  const Philox random(seed, 1);
  std::vector<float> logits;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    for (const std::int64_t extent : {shape.grid_rows, shape.grid_cols}) {
      const auto first = logits.size();
      for (std::int64_t i = 0; i < extent; ++i) {
        logits.push_back(static_cast<float>(-60.0 - std::floor(levels * random.uniform(logits.size())) / 4));
      }
      const auto best =
          static_cast<std::size_t>(random.uniform((1U << 30) + first) * static_cast<double>(extent));
      logits[first + best] = 0;
    }
  }
  return logits;
}

inline std::vector<float> normal_logits(const LayerShape& shape, std::uint64_t seed, double scale) {
  const Philox random(seed, 2);
  std::vector<float> logits(static_cast<std::size_t>(shape.num_tokens * (shape.grid_rows + shape.grid_cols)));
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(scale * normal(random, i));
  }
  return logits;
}

/// Normal logits in steps: log-softmax shifts them by what is no multiple of the step, so that many sums tie
/// and many more differ by their rounding alone.
inline std::vector<float> coarse_logits(const LayerShape& shape, std::uint64_t seed, double step) {
  std::vector<float> logits = normal_logits(shape, seed, 1);
  for (float& logit : logits) {
    logit = static_cast<float>(std::round(static_cast<double>(logit) / step) * step);
  }
  return logits;
}

inline RouterLogits split(const LayerShape& shape, const std::vector<float>& logits) {
  RouterLogits result{HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_rows),
                      HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_cols)};
  auto from = logits.begin();
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    std::copy_n(from, shape.grid_rows, result.row.f32().row(token));
    std::copy_n(from + shape.grid_rows, shape.grid_cols, result.col.f32().row(token));
    from += shape.grid_rows + shape.grid_cols;
  }
  return result;
}

/// The inverse of split().
inline std::vector<float> join(const LayerShape& shape, const RouterLogits& logits) {
  std::vector<float> joined;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    for (const auto& side : {logits.row.f32(), logits.col.f32()}) {
      const auto values = side.row_span(token);
      joined.insert(joined.end(), values.begin(), values.end());
    }
  }
  return joined;
}

inline std::vector<LayerShape> select_shapes() {
  return {make_shape(1, 8, 1, 1, 1), make_shape(3, 8, 1, 37, 5), make_shape(3, 8, 37, 1, 5),
          make_shape(5, 8, 1, 64, 64), make_shape(5, 8, 64, 1, 64), make_shape(300, 8, 8, 8, 1),
          make_shape(300, 8, 8, 8, 64), make_shape(3000, 8, 8, 8, 63), make_shape(2100, 8, 48, 16, 64),
          make_shape(265, 8, 16, 48, 7), make_shape(33, 8, 33, 29, 300), make_shape(3000, 8, 32, 32, 40),
          make_shape(2, 8, 320, 320, 512), make_shape(9, 8, 5, 200, 3), make_shape(4, 8, 320, 320, 4096),
          make_shape(2, 8, 1024, 1024, 512), make_shape(1, 8, 64, 96, 6144),
          // Long rows: sorted in memory, of few tokens and of many, and rows that take many columns beside
          // some that take few.
          make_shape(3, 8, 64, 1600, 2048), make_shape(270, 8, 64, 1600, 16),
          make_shape(270, 8, 20, 1100, 900), make_shape(300, 8, 33, 700, 700),
          make_shape(2, 8, 720, 720, 2048)};
}

}  // namespace moescope::test
