// router_select (eqs. 10-11): log-softmax of both marginals, exact top K of their sums, gates.
#include "reference/stages/router_select.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "core/base/error.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {
namespace {

constexpr std::size_t kLanes = 32;  // a warp's width, so that a GPU can add in the same order

/// Order-preserving map of floats to unsigned integers (negative zero just below zero).
std::uint32_t to_ordered(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

float from_ordered(std::uint32_t ordered) {
  return std::bit_cast<float>((ordered & 0x80000000U) != 0 ? ordered & 0x7fffffffU : ~ordered);
}

template <class Iterator>
void sort_front(Iterator first, std::int64_t count, Iterator last, auto less) {
  if (count < last - first) {
    std::nth_element(first, first + count, last, less);
  }
  std::sort(first, first + count, less);
}

void require_extents(const HostTensor& logits, std::string_view name, std::int64_t num_rows,
                     std::int64_t extent) {
  if (logits.dtype() != Dtype::kF32 || logits.rows() != num_rows || logits.cols() != extent) {
    throw InvalidArgument(name,
                          fmt::format("[{}, {}] {}", logits.rows(), logits.cols(), to_string(logits.dtype())),
                          fmt::format("must be [{}, {}] fp32", num_rows, extent));
  }
}

void require_finite(const HostTensor& logits, std::string_view name) {
  const auto view = logits.f32();
  for (std::int64_t r = 0; r < view.rows; ++r) {
    const auto row = view.row_span(r);
    const auto bad =
        std::find_if_not(row.begin(), row.end(), [](float value) { return std::isfinite(value); });
    if (bad != row.end()) {
      throw InvalidArgument(fmt::format("{}[{}, {}]", name, r, bad - row.begin()), fmt::format("{}", *bad),
                            "must be finite");
    }
  }
}

}  // namespace

float lane_sum(std::span<const float> values) {
  std::array<float, kLanes> lanes{};
  for (std::size_t first = 0; first < values.size(); first += kLanes) {
    const auto count = std::min(kLanes, values.size() - first);
    for (std::size_t lane = 0; lane < count; ++lane) {
      lanes[lane] += values[first + lane];
    }
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::size_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

void log_softmax(std::span<const float> logits, std::span<float> out) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::transform(logits.begin(), logits.end(), out.begin(), [max](float s) { return std::exp(s - max); });
  const float log_sum = std::log(lane_sum(out));
  std::transform(logits.begin(), logits.end(), out.begin(), [=](float s) { return (s - max) - log_sum; });
}

TokenSelector::TokenSelector(std::int64_t grid_rows, std::int64_t grid_cols, std::int64_t top_k,
                             GateMode gate_mode, Marginals marginals)
    : top_k_(top_k),
      gate_mode_(gate_mode),
      marginals_(marginals),
      kept_rows_(std::min(top_k, grid_rows)),
      kept_cols_(std::min(top_k, grid_cols)),
      row_p_(static_cast<std::size_t>(grid_rows)),
      col_p_(static_cast<std::size_t>(grid_cols)),
      sorted_rows_(row_p_.size()),
      col_keys_(col_p_.size()),
      sorted_cols_(col_p_.size()),
      row_picks_(col_p_.size()),
      scores_(static_cast<std::size_t>(top_k)) {
  if (top_k < 1 || top_k > grid_rows * grid_cols) {
    throw InvalidArgument("top_k", fmt::to_string(top_k),
                          fmt::format("must be in [1, {}]", grid_rows * grid_cols));
  }
  std::int64_t most_candidates = 0;
  for (std::int64_t i = 0; i < kept_rows_; ++i) {
    most_candidates += std::min(kept_cols_, top_k / (i + 1));
  }
  candidates_.resize(static_cast<std::size_t>(most_candidates));
}

void TokenSelector::select(std::span<const float> row_logits, std::span<const float> col_logits,
                           std::span<std::int32_t> expert_ids, std::span<float> gates) {
  if (marginals_ == Marginals::kLogSoftmax) {
    log_softmax(row_logits, row_p_);
    log_softmax(col_logits, col_p_);
  } else {
    std::ranges::copy(row_logits, row_p_.begin());
    std::ranges::copy(col_logits, col_p_.begin());
  }
  sort_marginals();
  collect_candidates();
  emit(find_threshold(), expert_ids);
  compute_gates(gates);
}

void TokenSelector::sort_marginals() {
  std::copy(row_p_.begin(), row_p_.end(), sorted_rows_.begin());
  sort_front(sorted_rows_.begin(), kept_rows_, sorted_rows_.end(), std::greater<>());
  for (std::size_t j = 0; j < col_p_.size(); ++j) {
    col_keys_[j] = (static_cast<std::uint64_t>(~to_ordered(col_p_[j])) << 32) | j;
  }
  sort_front(col_keys_.begin(), kept_cols_, col_keys_.end(), std::less<>());
  unpack_cols(0, kept_cols_);
}

void TokenSelector::unpack_cols(std::int64_t begin, std::int64_t end) {
  for (auto j = static_cast<std::size_t>(begin); j < static_cast<std::size_t>(end); ++j) {
    sorted_cols_[j] = from_ordered(~static_cast<std::uint32_t>(col_keys_[j] >> 32));
  }
}

void TokenSelector::collect_candidates() {
  const float* rows = sorted_rows_.data();
  const float* cols = sorted_cols_.data();
  lower_bound_ = -std::numeric_limits<float>::infinity();
  for (std::int64_t a = 1; a <= kept_rows_; ++a) {
    const auto b = (top_k_ + a - 1) / a;
    if (b <= kept_cols_) {
      lower_bound_ = std::max(lower_bound_, rows[a - 1] + cols[b - 1]);
    }
  }
  float* out = candidates_.data();
  std::int64_t count = kept_cols_;
  for (std::int64_t i = 0; i < kept_rows_; ++i) {
    count = std::min(count, top_k_ / (i + 1));
    while (count > 0 && rows[i] + cols[count - 1] < lower_bound_) {
      --count;
    }
    if (count == 0) {
      break;
    }
    for (std::int64_t j = 0; j < count; ++j) {
      out[j] = rows[i] + cols[j];
    }
    out += count;
  }
  num_candidates_ = out - candidates_.data();
}

float TokenSelector::find_threshold() const {
  const auto candidates = std::span(candidates_).first(static_cast<std::size_t>(num_candidates_));
  const auto count_from = [&](float threshold) {
    std::int32_t count = 0;  // as wide as a float, so that the loop vectorises
    for (const float score : candidates) {
      count += score >= threshold ? 1 : 0;
    }
    return static_cast<std::int64_t>(count);
  };
  // Invariant: at least K candidates are >= low, fewer than K are >= high.
  std::uint32_t low = to_ordered(lower_bound_);
  std::uint32_t high = to_ordered(candidates[0]) + 1;
  while (high - low > 1) {
    const std::uint32_t middle = low + (high - low) / 2;
    const auto count = count_from(from_ordered(middle));
    (count >= top_k_ ? low : high) = middle;
    if (count == top_k_) {
      break;
    }
  }
  const float cut = from_ordered(low);
  float threshold = candidates[0];
  for (const float score : candidates) {
    threshold = score >= cut && score < threshold ? score : threshold;
  }
  return threshold;
}

void TokenSelector::emit(float threshold, std::span<std::int32_t> expert_ids) {
  const auto above = std::count_if(candidates_.begin(), candidates_.begin() + num_candidates_,
                                   [=](float s) { return s > threshold; });
  std::int64_t ties_left = top_k_ - above;
  const auto grid_cols = std::ssize(sorted_cols_);
  auto searched_cols = kept_cols_;
  if (searched_cols < grid_cols &&
      sorted_rows_[0] + sorted_cols_[static_cast<std::size_t>(kept_cols_ - 1)] >= threshold) {
    // Columns past the K-th may tie with the threshold and have lower ids.
    std::sort(col_keys_.begin() + kept_cols_, col_keys_.end());
    unpack_cols(kept_cols_, grid_cols);
    searched_cols = grid_cols;
  }
  const auto cols = std::span(sorted_cols_).first(static_cast<std::size_t>(searched_cols));
  std::size_t emitted = 0;
  for (std::size_t row = 0; row < row_p_.size(); ++row) {
    const float p = row_p_[row];
    if (p + cols[0] < threshold) {
      continue;
    }
    const auto tie_begin =
        std::partition_point(cols.begin(), cols.end(), [=](float c) { return p + c > threshold; });
    const auto tie_end =
        std::partition_point(tie_begin, cols.end(), [=](float c) { return p + c >= threshold; });
    const auto num_above = tie_begin - cols.begin();
    const auto num_ties = ties_left > 0 ? tie_end - tie_begin : 0;
    const auto taken_ties = std::min<std::int64_t>(num_ties, ties_left);
    for (std::ptrdiff_t j = 0; j < num_above + num_ties; ++j) {
      row_picks_[static_cast<std::size_t>(j)] =
          static_cast<std::int32_t>(col_keys_[static_cast<std::size_t>(j)]);
    }
    const auto ties = row_picks_.begin() + num_above;
    if (taken_ties < num_ties) {
      std::nth_element(ties, ties + taken_ties, ties + num_ties);
    }
    ties_left -= taken_ties;
    const auto end = ties + taken_ties;
    std::sort(row_picks_.begin(), end);
    for (auto col = row_picks_.begin(); col != end; ++col, ++emitted) {
      expert_ids[emitted] = static_cast<std::int32_t>(static_cast<std::int64_t>(row) * grid_cols + *col);
      scores_[emitted] = p + col_p_[static_cast<std::size_t>(*col)];
    }
  }
}

void TokenSelector::compute_gates(std::span<float> gates) const {
  if (gate_mode_ == GateMode::kProbability) {
    std::transform(scores_.begin(), scores_.end(), gates.begin(), [](float s) { return std::exp(s); });
    return;
  }
  if (gate_mode_ == GateMode::kRelu) {
    std::transform(scores_.begin(), scores_.end(), gates.begin(), [](float s) { return std::max(s, 0.0F); });
    return;
  }
  const float max = *std::max_element(scores_.begin(), scores_.end());
  std::transform(scores_.begin(), scores_.end(), gates.begin(), [max](float s) { return std::exp(s - max); });
  const float sum = lane_sum(gates);
  for (float& gate : gates) {
    gate /= sum;
  }
}

Routing select_rows(const RouterLogits& logits, std::int64_t top_k, GateMode gate_mode, Marginals marginals) {
  const auto num_rows = logits.row.rows();
  require_extents(logits.row, "row_logits", num_rows, logits.row.cols());
  require_extents(logits.col, "col_logits", num_rows, logits.col.cols());
  require_finite(logits.row, "row_logits");
  require_finite(logits.col, "col_logits");
  Routing routing;
  routing.num_tokens = num_rows;
  routing.grid_rows = logits.row.cols();
  routing.grid_cols = logits.col.cols();
  routing.token_offsets.resize(static_cast<std::size_t>(num_rows) + 1);
  for (std::size_t row = 0; row < routing.token_offsets.size(); ++row) {
    routing.token_offsets[row] = static_cast<std::int64_t>(row) * top_k;
  }
  routing.expert_ids.resize(static_cast<std::size_t>(num_rows * top_k));
  routing.gates.resize(routing.expert_ids.size());
  const int threads = omp_get_max_threads();
  std::vector<TokenSelector> selectors(
      static_cast<std::size_t>(threads),
      TokenSelector(routing.grid_rows, routing.grid_cols, top_k, gate_mode, marginals));
  const auto row_logits = logits.row.f32();
  const auto col_logits = logits.col.f32();
  const auto count = static_cast<std::size_t>(top_k);
#pragma omp parallel for schedule(dynamic, 16) num_threads(threads)
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const auto first = static_cast<std::size_t>(row) * count;
    selectors[static_cast<std::size_t>(omp_get_thread_num())].select(
        row_logits.row_span(row), col_logits.row_span(row),
        std::span(routing.expert_ids).subspan(first, count), std::span(routing.gates).subspan(first, count));
  }
  return routing;
}

Routing router_select(const LayerShape& shape, const RouterLogits& logits) {
  shape.validate();
  require_extents(logits.row, "row_logits", shape.num_tokens, shape.grid_rows);
  require_extents(logits.col, "col_logits", shape.num_tokens, shape.grid_cols);
  return select_rows(logits, shape.top_k, shape.gate_mode, Marginals::kLogSoftmax);
}

}  // namespace moescope::reference
