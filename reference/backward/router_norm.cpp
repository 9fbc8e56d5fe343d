// The router's batch norm while training: statistics over the batch's tokens, summed in fp64.
#include <cmath>

#include "reference/backward/backward.hpp"
#include "reference/stages/router_select.hpp"

namespace moescope::reference {
namespace {

/// Means over the rows of f(row, column).
template <class F>
std::vector<double> column_means(std::int64_t rows, std::int64_t cols, const F& f) {
  std::vector<double> means(static_cast<std::size_t>(cols));
  for (std::int64_t t = 0; t < rows; ++t) {
    for (std::int64_t r = 0; r < cols; ++r) {
      means[static_cast<std::size_t>(r)] += f(t, r);
    }
  }
  for (double& mean : means) {
    mean /= static_cast<double>(rows);
  }
  return means;
}

}  // namespace

BatchStatistics normalise_logits(HostTensor& logits, double eps) {
  const auto a = logits.f32();
  BatchStatistics batch;
  batch.mean = column_means(a.rows, a.cols, [&](auto t, auto r) { return static_cast<double>(a.row(t)[r]); });
  batch.variance = column_means(a.rows, a.cols, [&](auto t, auto r) {
    const double off = a.row(t)[r] - batch.mean[static_cast<std::size_t>(r)];
    return off * off;
  });
  for (std::int64_t t = 0; t < a.rows; ++t) {
    for (std::int64_t r = 0; r < a.cols; ++r) {
      const auto column = static_cast<std::size_t>(r);
      a.row(t)[r] =
          static_cast<float>((a.row(t)[r] - batch.mean[column]) / std::sqrt(batch.variance[column] + eps));
    }
  }
  return batch;
}

void normalise_logits_backward(HostTensor& gradient, const HostTensor& normalised,
                               const BatchStatistics& statistics, double eps) {
  const auto da = gradient.f32();
  const auto ahat = normalised.f32();
  const auto mean =
      column_means(da.rows, da.cols, [&](auto t, auto r) { return static_cast<double>(da.row(t)[r]); });
  const auto mean_ahat = column_means(
      da.rows, da.cols, [&](auto t, auto r) { return static_cast<double>(da.row(t)[r]) * ahat.row(t)[r]; });
  for (std::int64_t t = 0; t < da.rows; ++t) {
    for (std::int64_t r = 0; r < da.cols; ++r) {
      const auto column = static_cast<std::size_t>(r);
      da.row(t)[r] = static_cast<float>((da.row(t)[r] - mean[column] - ahat.row(t)[r] * mean_ahat[column]) /
                                        std::sqrt(statistics.variance[column] + eps));
    }
  }
}

RunningNorm updated_norm(const RunningNorm& before, const BatchStatistics& batch, std::int64_t num_tokens,
                         double momentum) {
  RunningNorm after = before;
  const auto count = static_cast<double>(num_tokens);
  for (std::size_t r = 0; r < batch.mean.size(); ++r) {
    after.mean[r] += momentum * (batch.mean[r] - before.mean[r]);
    after.variance[r] += momentum * (batch.variance[r] * count / (count - 1) - before.variance[r]);
  }
  return after;
}

void log_softmax_rows(HostTensor& logits) {
  const auto view = logits.f32();
#pragma omp parallel
  {
    std::vector<float> row(static_cast<std::size_t>(view.cols));
#pragma omp for
    for (std::int64_t t = 0; t < view.rows; ++t) {
      log_softmax(view.row_span(t), row);
      std::copy(row.begin(), row.end(), view.row(t));
    }
  }
}

}  // namespace moescope::reference
