#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/layer/dtype.hpp"

/// Inner loops over rows of length d. Weights stay in storage dtype and are widened element by element in
/// registers (bf16 to fp32 is a shift), so that no fp32 copy of W or V exists. Written as plain loops of
/// constant width that the compiler turns into vector code.
namespace moescope::reference {

/// Independent partial sums of a dot product: element k goes to lane k % kDotLanes. 64 hides the latency of
/// the multiply-add at any vector width up to 512 bits.
inline constexpr std::int64_t kDotLanes = 64;

/// Rows of V that are added together, so that y is loaded and stored once for all of them.
inline constexpr int kRowsAtOnce = 4;

template <class T>
void load_row(const T* source, std::int64_t length, float* target) {
#pragma omp simd
  for (std::int64_t k = 0; k < length; ++k) {
    target[k] = to_float(source[k]);
  }
}

/// x . w in fp32; lanes are added pairwise at the end. The order depends on the length alone.
template <class T>
float dot(const float* x, const T* w, std::int64_t length) {
  alignas(64) std::array<float, kDotLanes> lanes{};
  std::int64_t k = 0;
  for (; k + kDotLanes <= length; k += kDotLanes) {
#pragma omp simd
    for (std::int64_t lane = 0; lane < kDotLanes; ++lane) {
      lanes[lane] += x[k + lane] * to_float(w[k + lane]);
    }
  }
  for (std::int64_t lane = 0; k + lane < length; ++lane) {
    lanes[lane] += x[k + lane] * to_float(w[k + lane]);
  }
  for (std::int64_t half = kDotLanes / 2; half > 0; half /= 2) {
    for (std::int64_t lane = 0; lane < half; ++lane) {
      lanes[lane] += lanes[lane + half];
    }
  }
  return lanes[0];
}

/// y += sum over r of a[r] * v[r], in the order of r; the same bits as one row after the other.
template <int kRows, class T>
void add_scaled_rows(const std::array<float, kRows>& a, const std::array<const T*, kRows>& v,
                     std::int64_t length, float* y) {
#pragma omp simd
  for (std::int64_t k = 0; k < length; ++k) {
    float sum = y[k];
    for (int r = 0; r < kRows; ++r) {
      sum += a[r] * to_float(v[r][k]);
    }
    y[k] = sum;
  }
}

/// y += sum over q of a[q] * row_of(q), in the order of q, kRowsAtOnce at a time. row_of(q) is a const T* of
/// `length` elements.
template <class T, class RowOf>
void add_weighted_rows(std::span<const float> a, const RowOf& row_of, std::int64_t length, float* y) {
  const auto add = [&]<int kRows>(std::size_t q) {
    std::array<float, kRows> scales;
    std::array<const T*, kRows> rows;
    for (std::size_t r = 0; r < kRows; ++r) {
      scales[r] = a[q + r];
      rows[r] = row_of(q + r);
    }
    add_scaled_rows<kRows, T>(scales, rows, length, y);
  };
  std::size_t q = 0;
  for (; q + kRowsAtOnce <= a.size(); q += kRowsAtOnce) {
    add.template operator()<kRowsAtOnce>(q);
  }
  for (; q < a.size(); ++q) {
    add.template operator()<1>(q);
  }
}

}  // namespace moescope::reference
