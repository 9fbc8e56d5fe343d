#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "capi/base/arena.hpp"
#include "capi/base/failure.hpp"
#include "capi/cpu/parallel.hpp"
#include "capi/cpu/problem.hpp"
#include "capi/cpu/storage.hpp"
#include "reference/backward/activation_slope.hpp"
#include "reference/stages/activation.hpp"

/// The experts of eq. 7 and their backward, token by token; core/layer/training.hpp has the symbols.
namespace moescope::capi {

template <class T>
struct ExpertsScratch {
  std::array<T*, 256> x{};    ///< [threads][d] a token's input as it is computed with
  std::array<T*, 256> dy{};   ///< [threads][d]; null in the forward
  std::array<T*, 256> sum{};  ///< [threads][d]
};

template <class T>
void take_experts_scratch(Arena& arena, const Problem& problem, bool backward, ExpertsScratch<T>& scratch) {
  for (std::size_t thread = 0; thread < static_cast<std::size_t>(problem.threads); ++thread) {
    scratch.x[thread] = arena.take<T>(problem.hidden);
    scratch.dy[thread] = backward ? arena.take<T>(problem.hidden) : nullptr;
    scratch.sum[thread] = arena.take<T>(problem.hidden);
  }
}

/// Throws Failure (value) naming the first id outside [0, N).
inline void require_ids(const Problem& problem, IdsView ids) {
  for (std::int64_t pair = 0; pair < problem.pairs(); ++pair) {
    if (ids[pair] < 0 || ids[pair] >= problem.experts()) {
      refuse(
          "ids[" + std::to_string(pair / problem.top_k) + ", " + std::to_string(pair % problem.top_k) + "]",
          std::to_string(ids[pair]), "must be in [0, " + std::to_string(problem.experts()) + ")");
    }
  }
}

template <class S, class T>
T dot(const T* a, const S* b, std::int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    sum += a[i] * load(b[i]);
  }
  return sum;
}

template <class S, class T>
void add_scaled(T* sum, T scale, const S* row, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    sum[i] += scale * load(row[i]);
  }
}

template <class S, class T>
void load_row(const S* from, std::int64_t count, T* to) {
  std::transform(from, from + count, to, [](S value) { return load(value); });
}

/// `base` + `sum`, rounded once; `base` [d] may be null.
template <class S, class T>
void store_row(const T* base, const T* sum, std::int64_t count, S* to) {
  for (std::int64_t i = 0; i < count; ++i) {
    store(to[i], base == nullptr ? sum[i] : base[i] + sum[i]);
  }
}

/// y[t] = base[t] + sum of gate act(x . w_in) w_out; `base` [L,d] may be null, or y itself.
template <class S, class T>
void experts_forward(const Problem& problem, ExpertsScratch<T>& scratch, const S* x, const S* w_in,
                     const S* w_out, IdsView ids, const T* gates, const T* base, S* y) {
  const std::int64_t d = problem.hidden;
  const double cost = 4.0 * static_cast<double>(problem.top_k * d);
  for_each(problem.tokens, problem.threads, cost, [&](int thread, std::int64_t t) {
    T* const own = scratch.x[static_cast<std::size_t>(thread)];
    T* const sum = scratch.sum[static_cast<std::size_t>(thread)];
    load_row(x + t * d, d, own);
    std::fill_n(sum, d, T{0});
    for (std::int64_t pair = t * problem.top_k; pair < (t + 1) * problem.top_k; ++pair) {
      const T z = dot(own, w_in + ids[pair] * d, d);
      add_scaled(sum, gates[pair] * reference::activate(problem.activation, z), w_out + ids[pair] * d, d);
    }
    store_row(base == nullptr ? nullptr : base + t * d, sum, d, y + t * d);
  });
}

/// Data gradients. Writes dx[t] = base[t] + sum of q w_in where `dx` is given, and of every pair
/// gates_gradient, p and q [L,K] where they are.
template <class S, class T>
void experts_dgrad(const Problem& problem, ExpertsScratch<T>& scratch, const S* x, const S* w_in,
                   const S* w_out, IdsView ids, const T* gates, const S* dy, const T* base, S* dx,
                   T* gates_gradient, T* p, T* q) {
  const std::int64_t d = problem.hidden;
  const double cost = 6.0 * static_cast<double>(problem.top_k * d);
  for_each(problem.tokens, problem.threads, cost, [&](int thread, std::int64_t t) {
    T* const own = scratch.x[static_cast<std::size_t>(thread)];
    T* const own_dy = scratch.dy[static_cast<std::size_t>(thread)];
    T* const sum = scratch.sum[static_cast<std::size_t>(thread)];
    load_row(x + t * d, d, own);
    load_row(dy + t * d, d, own_dy);
    std::fill_n(sum, d, T{0});
    for (std::int64_t pair = t * problem.top_k; pair < (t + 1) * problem.top_k; ++pair) {
      const S* const w = w_in + ids[pair] * d;
      const T z = dot(own, w, d);
      const T u = dot(own_dy, w_out + ids[pair] * d, d);
      const T a = reference::activate(problem.activation, z);
      const T slope = u * gates[pair] * reference::activation_slope(problem.activation, z);
      if (gates_gradient != nullptr) {
        gates_gradient[pair] = u * a;
      }
      if (p != nullptr) {
        p[pair] = gates[pair] * a;
        q[pair] = slope;
      }
      if (dx != nullptr) {
        add_scaled(sum, slope, w, d);
      }
    }
    if (dx != nullptr) {
      store_row(base == nullptr ? nullptr : base + t * d, sum, d, dx + t * d);
    }
  });
}

/// Pairs by expert: pairs of expert e are order[offsets[e]] to order[offsets[e + 1]], tokens ascending.
struct PairsByExpert {
  std::int64_t* offsets = nullptr;  ///< [N + 1]
  std::int64_t* order = nullptr;    ///< [M]
};
inline PairsByExpert take_pairs_by_expert(Arena& arena, const Problem& problem) {
  return {arena.take<std::int64_t>(problem.experts() + 1), arena.take<std::int64_t>(problem.pairs())};
}

inline void sort_pairs(const Problem& problem, IdsView ids, PairsByExpert& sorted) {
  std::fill_n(sorted.offsets, problem.experts() + 1, std::int64_t{0});
  for (std::int64_t pair = 0; pair < problem.pairs(); ++pair) {
    ++sorted.offsets[ids[pair] + 1];
  }
  for (std::int64_t e = 0; e < problem.experts(); ++e) {
    sorted.offsets[e + 1] += sorted.offsets[e];
  }
  // Each start moves to its end while pairs are laid, then all move back by one.
  for (std::int64_t pair = 0; pair < problem.pairs(); ++pair) {
    sorted.order[sorted.offsets[ids[pair]]++] = pair;
  }
  std::copy_backward(sorted.offsets, sorted.offsets + problem.experts(),
                     sorted.offsets + problem.experts() + 1);
  sorted.offsets[0] = 0;
}

/// One weight gradient: out[e] = sum over the expert's pairs of scale[pair] rows[token]. One owner an expert,
/// summed in the compute type whatever the storage.
template <class S, class T>
void experts_wgrad(const Problem& problem, const PairsByExpert& sorted, const S* rows, const T* scale,
                   S* out) {
  constexpr std::int64_t kBlock = 256;  // sums that stay in L1 beside the rows
  const std::int64_t d = problem.hidden;
  const double cost = 2.0 * static_cast<double>(d) *
                      (1 + static_cast<double>(problem.pairs()) /
                               static_cast<double>(std::max<std::int64_t>(problem.experts(), 1)));
  for_each(problem.experts(), problem.threads, cost, [&](int, std::int64_t e) {
    for (std::int64_t first = 0; first < d; first += kBlock) {
      const std::int64_t count = std::min(kBlock, d - first);
      std::array<T, kBlock> sum{};
      for (std::int64_t at = sorted.offsets[e]; at < sorted.offsets[e + 1]; ++at) {
        const std::int64_t pair = sorted.order[at];
        add_scaled(sum.data(), scale[pair], rows + pair / problem.top_k * d + first, count);
      }
      store_row<S, T>(nullptr, sum.data(), count, out + e * d + first);
    }
  });
}

/// Both weight gradients, those that are not null, of p and q from experts_dgrad().
template <class S, class T>
void experts_weights(const Problem& problem, PairsByExpert& sorted, IdsView ids, const S* x, const S* dy,
                     const T* p, const T* q, S* w_in_gradient, S* w_out_gradient) {
  if (w_in_gradient == nullptr && w_out_gradient == nullptr) {
    return;
  }
  sort_pairs(problem, ids, sorted);
  if (w_in_gradient != nullptr) {
    experts_wgrad(problem, sorted, x, q, w_in_gradient);
  }
  if (w_out_gradient != nullptr) {
    experts_wgrad(problem, sorted, dy, p, w_out_gradient);
  }
}

}  // namespace moescope::capi
