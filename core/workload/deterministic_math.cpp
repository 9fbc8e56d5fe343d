#include "core/workload/deterministic_math.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace moescope {
namespace {

// ln 2 in two parts: the first has 21 trailing zero bits, so its product with an exponent is exact.
constexpr double kLn2High = 0x1.62e42fee00000p-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Coefficients in ascending powers, evaluated by Horner's rule.
template <std::size_t count>
constexpr double polynomial(const std::array<double, count>& coefficients, double x) {
  double sum = coefficients[count - 1];
  for (std::size_t i = count - 1; i > 0; --i) {
    sum = sum * x + coefficients[i - 1];
  }
  return sum;
}

// PPND16 of AS 241: rational approximations for |p - 1/2| <= 0.425, and for the tails in r = sqrt(-ln p) up
// to 5 and beyond.
constexpr double kCentralHalfWidth = 0.425;
constexpr std::array kCentralNumerator = {
    3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
    4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3};
constexpr std::array kCentralDenominator = {1.0,
                                            4.2313330701600911252e1,
                                            6.8718700749205790830e2,
                                            5.3941960214247511077e3,
                                            2.1213794301586595867e4,
                                            3.9307895800092710610e4,
                                            2.8729085735721942674e4,
                                            5.2264952788528545610e3};
constexpr std::array kTailNumerator = {1.42343711074968357734e0,  4.63033784615654529590e0,
                                       5.76949722146069140550e0,  3.64784832476320460504e0,
                                       1.27045825245236838258e0,  2.41780725177450611770e-1,
                                       2.27238449892691845833e-2, 7.74545014278341407640e-4};
constexpr std::array kTailDenominator = {1.0,
                                         2.05319162663775882187e0,
                                         1.67638483018380384940e0,
                                         6.89767334985100004550e-1,
                                         1.48103976427480074590e-1,
                                         1.51986665636164571966e-2,
                                         5.47593808499534494600e-4,
                                         1.05075007164441684324e-9};
constexpr std::array kFarTailNumerator = {6.65790464350110377720e0,  5.46378491116411436990e0,
                                          1.78482653991729133580e0,  2.96560571828504891230e-1,
                                          2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                          2.71155556874348757815e-5, 2.01033439929228813265e-7};
constexpr std::array kFarTailDenominator = {1.0,
                                            5.99832206555887937690e-1,
                                            1.36929880922735805310e-1,
                                            1.48753612908506148525e-2,
                                            7.86869131145613259100e-4,
                                            1.84631831751005468180e-5,
                                            1.42151175831644588870e-7,
                                            2.04426310338993978564e-15};

/// q = p - 1/2.
double central_quantile(double q) {
  const double r = kCentralHalfWidth * kCentralHalfWidth - q * q;
  return q * polynomial(kCentralNumerator, r) / polynomial(kCentralDenominator, r);
}

/// `tail` is the smaller of p and 1 - p; the result is positive.
double tail_quantile(double tail) {
  const double r = std::sqrt(-deterministic_log(tail));
  return r <= 5.0 ? polynomial(kTailNumerator, r - 1.6) / polynomial(kTailDenominator, r - 1.6)
                  : polynomial(kFarTailNumerator, r - 5.0) / polynomial(kFarTailDenominator, r - 5.0);
}

// Blocks of numbers that stay in L1 while they pass through the loops below.
constexpr std::int64_t kChunk = 1024;
// Below this (about 0.2 ms of work) starting threads costs more than they save.
constexpr std::int64_t kParallelSize = 16 * kChunk;

/// Numbers 4 * block, ... of a stream, `count` <= kChunk of them. One simple loop per step, so that the
/// compiler vectorises all but the tails (15 %).
void normals_from_block(const Philox& philox, std::uint64_t block, std::int64_t count, double* out) {
  std::array<double, kChunk> centred;
  for (std::int64_t i = 0; i < count; i += 4) {
    const auto words = philox.block(block + static_cast<std::uint64_t>(i) / 4);
    for (std::size_t w = 0; w < 4; ++w) {
      centred[static_cast<std::size_t>(i) + w] = (static_cast<double>(words[w]) + 0.5) * 0x1.0p-32 - 0.5;
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = central_quantile(centred[static_cast<std::size_t>(i)]);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const double q = centred[static_cast<std::size_t>(i)];
    if (std::fabs(q) > kCentralHalfWidth) {
      out[i] = std::copysign(tail_quantile(0.5 - std::fabs(q)), q);
    }
  }
}

template <class T>
T to_storage(float value) {
  if constexpr (std::is_same_v<T, Bf16>) {
    return to_bf16(value);
  } else {
    return value;
  }
}

template <class T>
void fill_normal_as(MatrixView<T> view, double standard_deviation, const Philox& philox) {
  const std::int64_t size = view.size();
#pragma omp parallel for schedule(static) if (size >= kParallelSize)
  for (std::int64_t first = 0; first < size; first += kChunk) {
    std::array<double, kChunk> normals;
    const std::int64_t count = std::min(kChunk, size - first);
    normals_from_block(philox, static_cast<std::uint64_t>(first) / 4, count, normals.data());
    for (std::int64_t i = 0; i < count; ++i) {
      view.data[first + i] =
          to_storage<T>(static_cast<float>(standard_deviation * normals[static_cast<std::size_t>(i)]));
    }
  }
}

}  // namespace

double deterministic_log(double x) {
  if (!(x > 0)) {
    return x == 0 ? -kInfinity : kNaN;
  }
  if (x == kInfinity) {
    return x;
  }
  // x = 2^exponent m with m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), |s| < 0.1716.
  int exponent = 0;
  double m = std::frexp(x, &exponent);
  if (m < 0x1.6a09e667f3bcdp-1) {  // sqrt(1/2)
    m *= 2;
    --exponent;
  }
  const double f = m - 1;  // exact
  const double s = f / (2 + f);
  // artanh(s) = s + s^3/3 + s^5/5 + ...: the first term left out is below 2^-55 of the sum.
  constexpr std::array kTerms = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11,
                                 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
  const double square = s * s;
  // 2 s = f - s f, so that the leading term f is free of rounding.
  const double rest = s * (2 * square * polynomial(kTerms, square) - f);
  const double e = exponent;
  return e * kLn2High + (f + (rest + e * kLn2Low));
}

double deterministic_exp(double x) {
  if (std::isnan(x)) {
    return x;
  }
  if (x > 709.8) {
    return kInfinity;
  }
  if (x < -745.2) {
    return 0;
  }
  // x = exponent ln 2 + r, |r| <= ln(2) / 2, then Taylor: 0.3466^14 / 14! < 2^-57.
  const double exponent = std::floor(x * 0x1.71547652b82fep0 + 0.5);
  const double high = x - exponent * kLn2High;  // exact
  const double low = exponent * kLn2Low;
  const double r = high - low;
  constexpr auto kTerms = [] {
    std::array<double, 12> terms{};
    double factorial = 1;
    for (std::size_t i = 0; i < terms.size(); ++i) {
      factorial *= static_cast<double>(i + 2);
      terms[i] = 1 / factorial;
    }
    return terms;
  }();
  const double rounding = (high - r) - low;  // what the subtraction above lost
  const double value = 1 + (r + (r * r * polynomial(kTerms, r) + rounding));
  return std::ldexp(value, static_cast<int>(exponent));
}

double normal_quantile(double p) {
  if (!(p > 0 && p < 1)) {
    return p == 0 ? -kInfinity : p == 1 ? kInfinity : kNaN;
  }
  const double q = p - 0.5;
  if (std::fabs(q) <= kCentralHalfWidth) {
    return central_quantile(q);
  }
  return q < 0 ? -tail_quantile(p) : tail_quantile(1 - p);
}

void standard_normals(std::uint64_t seed, RandomStream stream, std::uint64_t first, std::span<double> out) {
  const Philox philox(seed, static_cast<std::uint32_t>(stream));
  std::array<double, kChunk> normals;
  std::uint64_t block = first / 4;
  std::uint64_t offset = first % 4;
  for (std::size_t done = 0; done < out.size();) {
    const std::size_t count = std::min<std::size_t>(out.size() - done, kChunk - offset);
    normals_from_block(philox, block, static_cast<std::int64_t>(offset + count), normals.data());
    std::copy_n(normals.begin() + static_cast<std::ptrdiff_t>(offset), count,
                out.begin() + static_cast<std::ptrdiff_t>(done));
    done += count;
    block += kChunk / 4;
    offset = 0;
  }
}

void fill_normal(HostTensor& tensor, double standard_deviation, std::uint64_t seed, RandomStream stream) {
  const Philox philox(seed, static_cast<std::uint32_t>(stream));
  if (tensor.dtype() == Dtype::kBF16) {
    fill_normal_as(tensor.bf16(), standard_deviation, philox);
  } else {
    fill_normal_as(tensor.f32(), standard_deviation, philox);
  }
}

std::vector<std::int32_t> random_permutation(std::int64_t count, std::uint64_t seed, RandomStream stream) {
  const Philox philox(seed, static_cast<std::uint32_t>(stream));
  std::vector<std::int32_t> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  for (std::int64_t i = count - 1; i > 0; --i) {
    const auto index = static_cast<std::uint64_t>(i);
    const auto other = static_cast<std::size_t>(philox.uniform(index) * static_cast<double>(i + 1));
    std::swap(order[index], order[other]);
  }
  return order;
}

}  // namespace moescope
