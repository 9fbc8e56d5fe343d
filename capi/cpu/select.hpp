#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>

#include "capi/base/arena.hpp"
#include "capi/base/failure.hpp"
#include "capi/cpu/parallel.hpp"
#include "capi/cpu/problem.hpp"
#include "capi/cpu/storage.hpp"

/// Selection in the precision of the logits, for pointers. reference/stages/router_select.hpp has the
/// algorithm in fp32 and why it is exact: by rank, (i, j) can be among the K best only if (i+1)(j+1) <= K.
namespace moescope::capi {

/// What one thread needs to select for a token.
template <class T>
struct SelectScratch {
  std::span<T> rows;         ///< [Nr] marginals by id
  std::span<T> cols;         ///< [Nc]
  std::span<T> sorted_rows;  ///< [Nr]
  std::span<T> sorted_cols;  ///< [Nc]
  std::span<T> candidates;
  std::span<std::int64_t> ids;  ///< [K]
  std::span<T> scores;          ///< [K]
  std::span<std::int64_t> order;
};

inline std::int64_t most_candidates(const Problem& problem) {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < std::min(problem.top_k, problem.grid_rows); ++i) {
    sum += std::min(problem.grid_cols, problem.top_k / (i + 1));
  }
  return sum;
}

template <class T>
SelectScratch<T> take_select_scratch(Arena& arena, const Problem& problem) {
  const auto span = [&]<class E>(E*, std::int64_t count) {
    return std::span<E>(arena.take<E>(count), static_cast<std::size_t>(count));
  };
  T* value = nullptr;
  std::int64_t* id = nullptr;
  return {span(value, problem.grid_rows),
          span(value, problem.grid_cols),
          span(value, problem.grid_rows),
          span(value, problem.grid_cols),
          span(value, most_candidates(problem)),
          span(id, problem.top_k),
          span(value, problem.top_k),
          span(id, problem.top_k)};
}

/// Marginals of a token's logits; throws Failure (value) naming a logit that is not finite.
template <class T>
void marginals(const Problem& problem, const char* name, std::int64_t token, const T* logits,
               std::span<T> out) {
  T max = -std::numeric_limits<T>::infinity();
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      refuse(std::string(name) + "[" + std::to_string(token) + ", " + std::to_string(i) + "]",
             std::to_string(logits[i]), "must be finite");
    }
    max = std::max(max, logits[i]);
  }
  if (!problem.log_softmax) {
    std::copy_n(logits, out.size(), out.begin());
    return;
  }
  T sum = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    sum += std::exp(logits[i] - max);
  }
  const T log_sum = std::log(sum);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = (logits[i] - max) - log_sum;
  }
}

/// The K best of a token whose marginals are in `s`: ids and scores there, by falling score and rising id.
template <class T>
void select_token(const Problem& problem, SelectScratch<T>& s) {
  const auto top = static_cast<std::size_t>(problem.top_k);
  const auto sort_front = [&](std::span<const T> from, std::span<T> to) {
    std::copy(from.begin(), from.end(), to.begin());
    const auto kept = static_cast<std::ptrdiff_t>(std::min(top, to.size()));
    std::partial_sort(to.begin(), to.begin() + kept, to.end(), std::greater<>());
    return static_cast<std::size_t>(kept);
  };
  const std::size_t kept_rows = sort_front(s.rows, s.sorted_rows);
  const std::size_t kept_cols = sort_front(s.cols, s.sorted_cols);
  std::size_t count = 0;
  for (std::size_t i = 0; i < kept_rows; ++i) {
    for (std::size_t j = 0; j < std::min(kept_cols, top / (i + 1)); ++j) {
      s.candidates[count++] = s.sorted_rows[i] + s.sorted_cols[j];
    }
  }
  const auto candidates = s.candidates.first(count);
  std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(top - 1),
                   candidates.end(), std::greater<>());
  const T threshold = candidates[top - 1];
  const auto above = std::count_if(candidates.begin(), candidates.end(), [&](T v) { return v > threshold; });
  // Rounding can tie sums of any ranks, so ties are looked for over the whole grid, the lowest ids first.
  auto ties = static_cast<std::int64_t>(top) - above;
  std::size_t found = 0;
  const T best_col = s.sorted_cols[0];
  for (std::size_t i = 0; i < s.rows.size() && found < top; ++i) {
    if (s.rows[i] + best_col < threshold) {
      continue;
    }
    for (std::size_t j = 0; j < s.cols.size(); ++j) {
      const T score = s.rows[i] + s.cols[j];
      if (score < threshold || (score == threshold && ties-- <= 0)) {
        continue;
      }
      s.ids[found] = static_cast<std::int64_t>(i * s.cols.size() + j);
      s.scores[found++] = score;
    }
  }
  for (std::size_t k = 0; k < top; ++k) {
    s.order[k] = static_cast<std::int64_t>(k);
  }
  std::sort(s.order.begin(), s.order.end(), [&](std::int64_t a, std::int64_t b) {
    const T left = s.scores[static_cast<std::size_t>(a)];
    const T right = s.scores[static_cast<std::size_t>(b)];
    return left > right || (left == right && a < b);
  });
}

/// Gates over a token's scores [K]; `gates` may be where the scores stand.
template <class T>
void gates_of(std::int32_t mode, std::span<const T> scores, std::span<T> gates) {
  switch (mode) {
    case MOESCOPE_GATES_SOFTMAX: {
      const T max = *std::max_element(scores.begin(), scores.end());
      T sum = 0;
      for (std::size_t k = 0; k < scores.size(); ++k) {
        gates[k] = std::exp(scores[k] - max);
        sum += gates[k];
      }
      for (T& gate : gates) {
        gate /= sum;
      }
      break;
    }
    case MOESCOPE_GATES_PROBABILITY:
      std::transform(scores.begin(), scores.end(), gates.begin(), [](T s) { return std::exp(s); });
      break;
    case MOESCOPE_GATES_RELU:
      std::transform(scores.begin(), scores.end(), gates.begin(), [](T s) { return std::max(s, T{0}); });
      break;
    default:
      std::copy(scores.begin(), scores.end(), gates.begin());
  }
}

/// Scratch of selection and of its backward: a piece for each thread, [threads].
template <class T>
struct SelectWorkspace {
  std::array<SelectScratch<T>, 256> of_thread;
};

template <class T>
void take_select_workspace(Arena& arena, const Problem& problem, SelectWorkspace<T>& workspace) {
  for (int thread = 0; thread < problem.threads; ++thread) {
    workspace.of_thread[static_cast<std::size_t>(thread)] = take_select_scratch<T>(arena, problem);
  }
}

/// moescope_select_forward(). `scores` may be null.
template <class T>
void select_forward(const Problem& problem, SelectWorkspace<T>& workspace, const T* row_logits,
                    const T* col_logits, void* ids, T* gates, T* scores) {
  const double cost = 20.0 * static_cast<double>(problem.grid_rows + problem.grid_cols + problem.top_k);
  for_each(problem.tokens, problem.threads, cost, [&](int thread, std::int64_t t) {
    auto& s = workspace.of_thread[static_cast<std::size_t>(thread)];
    marginals(problem, "row_logits", t, row_logits + t * problem.grid_rows, s.rows);
    marginals(problem, "col_logits", t, col_logits + t * problem.grid_cols, s.cols);
    select_token(problem, s);
    const std::int64_t first = t * problem.top_k;
    const std::span<T> own(gates + first, static_cast<std::size_t>(problem.top_k));
    for (std::size_t k = 0; k < own.size(); ++k) {
      const auto from = static_cast<std::size_t>(s.order[k]);
      own[k] = s.scores[from];
      store_id(ids, problem.wide_ids, first + static_cast<std::int64_t>(k), s.ids[from]);
    }
    if (scores != nullptr) {
      std::copy(own.begin(), own.end(), scores + first);
    }
    gates_of<T>(problem.gate_mode, own, own);
  });
}

/// moescope_select_backward(). With g the scores' gradients of a token: of row r, the sum over its pairs
/// less, behind a log-softmax, softmax[r] times the sum of all. Columns likewise.
template <class T>
void select_backward(const Problem& problem, SelectWorkspace<T>& workspace, const T* row_logits,
                     const T* col_logits, IdsView ids, const T* gates_gradient, T* row_gradient,
                     T* col_gradient) {
  const double cost = 20.0 * static_cast<double>(problem.grid_rows + problem.grid_cols + problem.top_k);
  for_each(problem.tokens, problem.threads, cost, [&](int thread, std::int64_t t) {
    auto& s = workspace.of_thread[static_cast<std::size_t>(thread)];
    marginals(problem, "row_logits", t, row_logits + t * problem.grid_rows, s.rows);
    marginals(problem, "col_logits", t, col_logits + t * problem.grid_cols, s.cols);
    const std::int64_t first = t * problem.top_k;
    const T* given = gates_gradient + first;
    for (std::size_t k = 0; k < s.scores.size(); ++k) {
      s.ids[k] = ids[first + static_cast<std::int64_t>(k)];
      s.scores[k] = s.rows[static_cast<std::size_t>(s.ids[k] / problem.grid_cols)] +
                    s.cols[static_cast<std::size_t>(s.ids[k] % problem.grid_cols)];
    }
    const std::span<T> g = s.scores;
    if (problem.gate_mode == MOESCOPE_GATES_SOFTMAX) {
      gates_of<T>(problem.gate_mode, s.scores, g);
      T mean = 0;
      for (std::size_t k = 0; k < g.size(); ++k) {
        mean += g[k] * given[k];
      }
      for (std::size_t k = 0; k < g.size(); ++k) {
        g[k] *= given[k] - mean;
      }
    } else {
      for (std::size_t k = 0; k < g.size(); ++k) {
        g[k] = problem.gate_mode == MOESCOPE_GATES_PROBABILITY ? std::exp(g[k]) * given[k]
               : problem.gate_mode == MOESCOPE_GATES_RELU      ? (g[k] > 0 ? given[k] : T{0})
                                                               : given[k];
      }
    }
    T sum = 0;
    for (const T one : g) {
      sum += one;
    }
    const auto write = [&](T* out, std::span<const T> log_p, const auto& part) {
      for (std::size_t i = 0; i < log_p.size(); ++i) {
        out[i] = problem.log_softmax ? -sum * std::exp(log_p[i]) : T{0};
      }
      for (std::size_t k = 0; k < g.size(); ++k) {
        out[part(s.ids[k])] += g[k];
      }
    };
    if (row_gradient != nullptr) {
      write(row_gradient + t * problem.grid_rows, s.rows,
            [&](std::int64_t id) { return id / problem.grid_cols; });
    }
    if (col_gradient != nullptr) {
      write(col_gradient + t * problem.grid_cols, s.cols,
            [&](std::int64_t id) { return id % problem.grid_cols; });
    }
  });
}

}  // namespace moescope::capi
