#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/strips.hpp"

/// The contents of DeviceStrips, worked out plainly on the host: what the device's selection is compared
/// with, and what tests of the staircase kernel run on.
namespace moescope::test {

/// Every array of DeviceStrips, and the same selection as pairs with their gates.
struct HostStrips {
  std::vector<float> row_log_probs, col_log_probs, uncovered_rows;
  std::vector<float> threshold, gate_shift;
  std::vector<std::int32_t> tie_limit, cover_sizes;
  std::vector<std::vector<std::int32_t>> covers;  ///< strips of each token, ascending
  std::vector<std::int32_t> strip_offsets, strip_tokens;
  std::vector<cuda::StripTile> tiles;
  Routing routing;
};

/// Log-softmax in double, rounded to fp32 once.
inline std::vector<float> log_softmax(const std::vector<float>& logits, std::int64_t width) {
  std::vector<float> result(logits.size());
  for (std::size_t begin = 0; begin < logits.size(); begin += static_cast<std::size_t>(width)) {
    const auto first = logits.begin() + static_cast<std::ptrdiff_t>(begin);
    const double largest = *std::max_element(first, first + width);
    double sum = 0;
    for (auto it = first; it != first + width; ++it) sum += std::exp(*it - largest);
    const double shift = largest + std::log(sum);
    for (std::int64_t i = 0; i < width; ++i) result[begin + i] = static_cast<float>(first[i] - shift);
  }
  return result;
}

/// One token's selected ids, ascending: the K largest fp32 sums row[i] + col[j], ties to the lower id. Sets
/// the K-th largest sum and the largest id selected among its equals.
inline std::vector<std::int32_t> select_sums(const float* row, std::int64_t rows, const float* col,
                                             std::int64_t cols, std::int64_t top_k, float& threshold,
                                             std::int32_t& tie_limit) {
  const auto descending = [](const float* values, std::int64_t count) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return values[a] > values[b]; });
    return order;
  };
  const std::vector<std::int32_t> by_row = descending(row, rows);
  const std::vector<std::int32_t> by_col = descending(col, cols);
  // The K largest values lie where (i + 1) (j + 1) <= K (DESIGN section 2).
  std::vector<float> sums;
  for (std::int64_t i = 0; i < std::min(rows, top_k); ++i) {
    for (std::int64_t j = 0; j < std::min(cols, top_k / (i + 1)); ++j) {
      sums.push_back(row[by_row[i]] + col[by_col[j]]);
    }
  }
  std::nth_element(sums.begin(), sums.begin() + (top_k - 1), sums.end(), std::greater<>());
  threshold = sums[static_cast<std::size_t>(top_k - 1)];
  std::vector<std::int32_t> ids;
  std::vector<std::int32_t> equal;
  for (const std::int32_t r : by_row) {
    for (const std::int32_t c : by_col) {
      const float sum = row[r] + col[c];
      if (sum < threshold) break;
      (sum > threshold ? ids : equal).push_back(static_cast<std::int32_t>(r * cols + c));
    }
  }
  std::sort(equal.begin(), equal.end());
  equal.resize(static_cast<std::size_t>(top_k) - ids.size());
  tie_limit = equal.back();
  ids.insert(ids.end(), equal.begin(), equal.end());
  std::sort(ids.begin(), ids.end());
  return ids;
}

/// Strips of a batch from its logits [L, Nr] and [L, Nc].
inline HostStrips make_host_strips(const LayerShape& shape, const std::vector<float>& row_logits,
                                   const std::vector<float>& col_logits, StripRule rule,
                                   std::int64_t tile_tokens) {
  const std::int64_t rows = shape.grid_rows;
  const std::int64_t cols = shape.grid_cols;
  HostStrips strips;
  strips.row_log_probs = log_softmax(row_logits, rows);
  strips.col_log_probs = log_softmax(col_logits, cols);
  strips.uncovered_rows = strips.row_log_probs;
  strips.routing.num_tokens = shape.num_tokens;
  strips.routing.grid_rows = rows;
  strips.routing.grid_cols = cols;
  strips.routing.token_offsets.push_back(0);
  std::vector<std::vector<std::int32_t>> tokens(static_cast<std::size_t>(rows + cols));
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const float* const row = strips.row_log_probs.data() + token * rows;
    const float* const col = strips.col_log_probs.data() + token * cols;
    float threshold = 0;
    std::int32_t tie_limit = -1;
    const std::vector<std::int32_t> ids =
        select_sums(row, rows, col, cols, shape.top_k, threshold, tie_limit);
    StripCover cover;
    if (rule == StripRule::kMinimalCover) {
      cover = minimal_strip_cover(ids, rows, cols);
    } else {
      for (const std::int32_t id : ids) {
        const auto r = static_cast<std::int32_t>(id / cols);
        if (cover.rows.empty() || cover.rows.back() != r) cover.rows.push_back(r);
      }
    }
    std::vector<std::int32_t> strip_list = cover.rows;
    for (const std::int32_t r : cover.rows) {
      strips.uncovered_rows[token * rows + r] = -std::numeric_limits<float>::infinity();
    }
    for (const std::int32_t c : cover.cols) strip_list.push_back(static_cast<std::int32_t>(rows + c));
    for (const std::int32_t strip : strip_list) tokens[strip].push_back(static_cast<std::int32_t>(token));
    double sum = 0;
    for (const std::int32_t id : ids) {
      sum += std::exp(static_cast<double>(row[id / cols]) + static_cast<double>(col[id % cols]));
    }
    const double log_sum = std::log(sum);
    const double shift = shape.gate_mode == GateMode::kSoftmax ? log_sum : 0;
    for (const std::int32_t id : ids) {
      strips.routing.expert_ids.push_back(id);
      strips.routing.gates.push_back(static_cast<float>(
          std::exp(static_cast<double>(row[id / cols]) + static_cast<double>(col[id % cols]) - shift)));
    }
    strips.routing.token_offsets.push_back(strips.routing.num_pairs());
    strips.threshold.push_back(threshold);
    strips.tie_limit.push_back(tie_limit);
    strips.gate_shift.push_back(static_cast<float>(log_sum));
    strips.cover_sizes.push_back(static_cast<std::int32_t>(strip_list.size()));
    strips.covers.push_back(std::move(strip_list));
  }
  strips.strip_offsets.push_back(0);
  for (std::size_t strip = 0; strip < tokens.size(); ++strip) {
    const std::int32_t first = strips.strip_offsets.back();
    const auto count = static_cast<std::int32_t>(tokens[strip].size());
    std::int32_t done = 0;
    for (std::int32_t tile = 0; done < count; ++tile) {
      const std::int32_t size = strip_tile_tokens(count, static_cast<std::int32_t>(tile_tokens), tile);
      strips.tiles.push_back(
          {.strip = static_cast<std::int32_t>(strip), .first_entry = first + done, .count = size});
      done += size;
    }
    strips.strip_tokens.insert(strips.strip_tokens.end(), tokens[strip].begin(), tokens[strip].end());
    strips.strip_offsets.push_back(first + count);
  }
  return strips;
}

}  // namespace moescope::test
