#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "capi/base/arena.hpp"
#include "capi/cpu/experts.hpp"
#include "capi/cpu/parallel.hpp"
#include "capi/cpu/problem.hpp"
#include "capi/cpu/storage.hpp"

/// The shared MLP and its backward as products of matrices, blocks of rows side by side.
namespace moescope::capi {

template <class T>
using MatrixMap = Eigen::Map<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;
template <class T>
using ConstMatrixMap =
    Eigen::Map<const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>;

constexpr std::int64_t kMlpRows = 64;  // of a block

/// What the products read, in the compute type: the caller's own array where it is stored so, else a copy.
template <class S, class T>
struct Operand {
  T* copy = nullptr;
  const T* data = nullptr;

  static Operand take(Arena& arena, std::int64_t count) {
    return {std::is_same_v<S, T> ? nullptr : arena.take<T>(count), nullptr};
  }
  void load_from(const S* from, std::int64_t count, int threads) {
    if constexpr (std::is_same_v<S, T>) {
      data = from;
    } else {
      constexpr std::int64_t kPiece = 4096;
      for_each((count + kPiece - 1) / kPiece, threads, kPiece, [&](int, std::int64_t piece) {
        const std::int64_t first = piece * kPiece;
        load_row(from + first, std::min(kPiece, count - first), copy + first);
      });
      data = copy;
    }
  }
};

template <class S, class T>
struct MlpScratch {
  Operand<S, T> x, dy, gate, up, down;
  T* gated = nullptr;   ///< [L,f] x gate^T, then its gradient
  T* raised = nullptr;  ///< [L,f] x up^T, then its gradient
  T* hidden = nullptr;  ///< [L,f] act(gated) * raised
  T* out = nullptr;     ///< [L,d] y or dx before it is rounded; null where the output itself can hold it
  T* weight = nullptr;  ///< [f,d] a gradient before it is rounded; likewise
};

template <class S, class T>
MlpScratch<S, T> take_mlp_scratch(Arena& arena, const Problem& problem, bool backward) {
  const std::int64_t inputs = problem.tokens * problem.hidden;
  const std::int64_t weights = problem.shared * problem.hidden;
  const std::int64_t units = problem.tokens * problem.shared;
  MlpScratch<S, T> scratch;
  scratch.x = Operand<S, T>::take(arena, inputs);
  scratch.gate = Operand<S, T>::take(arena, weights);
  scratch.up = Operand<S, T>::take(arena, weights);
  scratch.down = Operand<S, T>::take(arena, weights);
  scratch.gated = arena.take<T>(units);
  scratch.raised = arena.take<T>(units);
  scratch.hidden = arena.take<T>(units);
  if (backward) {
    scratch.dy = Operand<S, T>::take(arena, inputs);
  }
  if constexpr (!std::is_same_v<S, T>) {
    scratch.out = arena.take<T>(inputs);
    scratch.weight = backward ? arena.take<T>(weights) : nullptr;
  }
  return scratch;
}

/// out [rows, cols] = a [rows, inner] b^T or a^T b ..., a block of rows of `out` a call: product(first,
/// count).
template <class Product>
void by_rows(std::int64_t rows, double cost, int threads, const Product& product) {
  for_each((rows + kMlpRows - 1) / kMlpRows, threads, cost * kMlpRows, [&](int, std::int64_t block) {
    const std::int64_t first = block * kMlpRows;
    product(first, std::min(kMlpRows, rows - first));
  });
}

/// Where [L,d] is summed: the output itself (null: nowhere) where its type is the compute type, else `held`.
template <class S, class T>
T* summed_in(T* held, void* output) {
  if constexpr (std::is_same_v<S, T>) {
    return static_cast<T*>(output);
  } else {
    return output == nullptr ? nullptr : held;
  }
}

template <class S, class T>
void mlp_hidden(const Problem& problem, MlpScratch<S, T>& s) {
  const std::int64_t d = problem.hidden;
  const std::int64_t f = problem.shared;
  const ConstMatrixMap<T> gate(s.gate.data, f, d);
  const ConstMatrixMap<T> up(s.up.data, f, d);
  by_rows(problem.tokens, 4.0 * static_cast<double>(d * f), problem.threads,
          [&](std::int64_t first, std::int64_t count) {
            const ConstMatrixMap<T> x(s.x.data + first * d, count, d);
            MatrixMap<T>(s.gated + first * f, count, f).noalias() = x * gate.transpose();
            MatrixMap<T>(s.raised + first * f, count, f).noalias() = x * up.transpose();
            for (std::int64_t i = first * f; i < (first + count) * f; ++i) {
              s.hidden[i] = reference::activate(problem.activation, s.gated[i]) * s.raised[i];
            }
          });
}

template <class S, class T>
void load_mlp(const Problem& problem, MlpScratch<S, T>& s, const S* x, const S* gate, const S* up,
              const S* down) {
  const std::int64_t weights = problem.shared * problem.hidden;
  s.x.load_from(x, problem.tokens * problem.hidden, problem.threads);
  s.gate.load_from(gate, weights, problem.threads);
  s.up.load_from(up, weights, problem.threads);
  s.down.load_from(down, weights, problem.threads);
}

/// Writes y [L,d] in the compute type.
template <class S, class T>
void mlp_forward(const Problem& problem, MlpScratch<S, T>& s, const S* x, const S* gate, const S* up,
                 const S* down, T* y) {
  load_mlp(problem, s, x, gate, up, down);
  mlp_hidden(problem, s);
  const std::int64_t d = problem.hidden;
  const std::int64_t f = problem.shared;
  const ConstMatrixMap<T> to(s.down.data, d, f);
  by_rows(problem.tokens, 2.0 * static_cast<double>(d * f), problem.threads,
          [&](std::int64_t first, std::int64_t count) {
            MatrixMap<T>(y + first * d, count, d).noalias() =
                ConstMatrixMap<T>(s.hidden + first * f, count, f) * to.transpose();
          });
}

/// out [rows, cols] = a^T b, a [L, rows], b [L, cols]: a weight gradient, rounded once. `held` [rows, cols]
/// where the storage cannot hold the sums.
template <class S, class T>
void weight_gradient(std::int64_t tokens, const T* a, std::int64_t rows, const T* b, std::int64_t cols,
                     int threads, T* held, S* out) {
  T* to = held;
  if constexpr (std::is_same_v<S, T>) {
    to = out;
  }
  const ConstMatrixMap<T> left(a, tokens, rows);
  const ConstMatrixMap<T> right(b, tokens, cols);
  by_rows(rows, 2.0 * static_cast<double>(tokens * cols), threads,
          [&](std::int64_t first, std::int64_t count) {
            MatrixMap<T>(to + first * cols, count, cols).noalias() =
                left.middleCols(first, count).transpose() * right;
            if constexpr (!std::is_same_v<S, T>) {
              store_row<S, T>(nullptr, to + first * cols, count * cols, out + first * cols);
            }
          });
}

/// Gradients of the MLP; null ones are left out. `dx` [L,d] is in the compute type.
template <class S, class T>
void mlp_backward(const Problem& problem, MlpScratch<S, T>& s, const S* x, const S* gate, const S* up,
                  const S* down, const S* dy, T* dx, S* gate_gradient, S* up_gradient, S* down_gradient) {
  load_mlp(problem, s, x, gate, up, down);
  s.dy.load_from(dy, problem.tokens * problem.hidden, problem.threads);
  mlp_hidden(problem, s);
  const std::int64_t d = problem.hidden;
  const std::int64_t f = problem.shared;
  if (down_gradient != nullptr) {
    weight_gradient(problem.tokens, s.dy.data, d, s.hidden, f, problem.threads, s.weight, down_gradient);
  }
  const ConstMatrixMap<T> from(s.down.data, d, f);
  by_rows(problem.tokens, 2.0 * static_cast<double>(d * f), problem.threads,
          [&](std::int64_t first, std::int64_t count) {
            MatrixMap<T>(s.hidden + first * f, count, f).noalias() =
                ConstMatrixMap<T>(s.dy.data + first * d, count, d) * from;
            for (std::int64_t i = first * f; i < (first + count) * f; ++i) {
              const T g = s.gated[i];
              s.gated[i] = s.hidden[i] * s.raised[i] * reference::activation_slope(problem.activation, g);
              s.raised[i] = s.hidden[i] * reference::activate(problem.activation, g);
            }
          });
  if (gate_gradient != nullptr) {
    weight_gradient(problem.tokens, s.gated, f, s.x.data, d, problem.threads, s.weight, gate_gradient);
  }
  if (up_gradient != nullptr) {
    weight_gradient(problem.tokens, s.raised, f, s.x.data, d, problem.threads, s.weight, up_gradient);
  }
  if (dx != nullptr) {
    const ConstMatrixMap<T> by_gate(s.gate.data, f, d);
    const ConstMatrixMap<T> by_up(s.up.data, f, d);
    by_rows(problem.tokens, 4.0 * static_cast<double>(d * f), problem.threads,
            [&](std::int64_t first, std::int64_t count) {
              MatrixMap<T> out(dx + first * d, count, d);
              out.noalias() = ConstMatrixMap<T>(s.gated + first * f, count, f) * by_gate;
              out.noalias() += ConstMatrixMap<T>(s.raised + first * f, count, f) * by_up;
            });
  }
}

}  // namespace moescope::capi
