// Tolerances and their derivation (DESIGN section 9).
//
// Relative Frobenius error of an output against the fp64 oracle, both from the same storage-rounded inputs.
// Errors of single roundings are taken as independent and centred, which is what rounding to nearest gives
// on data that was not made to defeat it; so they add in squares, and a sum of n products behaves like a
// random walk.
//
// 1. One rounding to p significant bits of a value with mantissa m in [1,2) has an error uniform in +-2^-p,
//    relative +-2^-p / m. With mantissas log-uniform (Benford), E[1/m^2] = (1/ln 2) * 3/8 = 0.541, so its
//    root mean square is 2^-p sqrt(0.541 / 3) = 0.425 * 2^-p: 1.66e-3 in bf16 (p = 8), 2.5e-8 in fp32
//    (p = 24).
// 2. bf16 storage rounds three times on the longest path: the tensor-core operand P, the hidden activation
//    of the shared MLP, and the output. P and the hidden activation enter sums of independent terms, so
//    their relative error passes through unchanged: sqrt(3) * 1.66e-3 = 2.9e-3. kSampleMargin covers small
//    samples, in which few mantissas decide: a layer of one pair and eight outputs showed 3.8e-3, large
//    ones 2.4e-3. With it the floor on quality is what binds.
// 3. fp32 accumulation of n terms: partial sum k has a size of sqrt(k/n) of the result and is rounded once,
//    so the error is 0.425 * 2^-24 sqrt(n/2) of the result; three products follow each other (x.w, the sum
//    over experts or the shared MLP, the router behind the gates). Sums whose terms cancel are larger than
//    their result, and gates are exponentials, whose relative error is the absolute error of a score of
//    size up to 16: the whole is taken as 2 * 2^-24 (sqrt(n) + 32).
// 4. Few outputs. An output's error is a sum of roundings, each times a vector: p_k v_k for a score P, h_j
//    d_j for a hidden activation with its column of the last matrix, y_c e_c for the output itself. With the
//    mean square of one rounding s^2 = 0.180 * 2^-2p (derivation 1) the square of the error's length is a
//    quadratic form in independent centred variables with mean s^2 tr G, G the vectors' Gram matrix, which
//    for normal variables exceeds s^2 (tr G + 2 sqrt(tr(G^2) t) + 2 |G| t) with a chance of exp(-t) (Laurent
//    and Massart 2000, lemma 1), and |G| <= sqrt(tr G^2). t = 14: once in a million. tr G^2 takes each
//    vector's own square exactly and products of different ones at the 1/d that directions at random have.
//    Nor can it exceed 2^-2p times the square of the sum of all sizes, output by output. n = (tr G)^2 / tr
//    G^2 is the number of roundings as alike as these would have to be; from n = 1000 on this bound is the
//    floor's 4e-3 and the floor on quality is what holds. In fp32 only derivation 3 is left, whose errors are
//    fractions of terms: they grow beside a result whose terms cancel (sqrt(magnitude / ||y||^2)), which
//    among many outputs averages out.
#include "core/layer/tolerance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/error.hpp"

namespace moescope {
namespace {

constexpr double kUnitF32 = 0x1p-24;            // unit roundoff of binary32
constexpr double kUnitBf16 = 0x1p-8;            // unit roundoff of bfloat16: 8 significant bits
constexpr double kRoundingRms = 0.425;          // derivation 1
constexpr double kStorageRoundings = 3;         // derivation 2
constexpr double kSampleMargin = 1.4;           // derivation 2
constexpr double kChance = 14;                  // derivation 4: -ln of how often it may be exceeded
constexpr double kAccumulationFactor = 2;       // derivation 3
constexpr double kAccumulationOffset = 32;      // derivation 3
constexpr double kFloorBf16 = 4e-3;             // DESIGN section 9
constexpr double kFloorF32 = 1e-5;              // DESIGN section 9
constexpr double kSelectionDeviations = 6;      // six standard deviations of a random walk
constexpr double kSelectionScoreRoundings = 8;  // roundings of score size, see selection_tolerance

double accumulation_error(std::int64_t reduction_length) {
  return kAccumulationFactor * kUnitF32 *
         (std::sqrt(static_cast<double>(reduction_length)) + kAccumulationOffset);
}

}  // namespace

double relative_error_tolerance(Dtype dtype, std::int64_t reduction_length) {
  if (reduction_length < 1) {
    throw InvalidArgument("reduction_length", fmt::to_string(reduction_length), "must be at least 1");
  }
  const double accumulation = accumulation_error(reduction_length);
  if (dtype == Dtype::kF32) {
    return std::min(kFloorF32, accumulation);
  }
  const double storage = kSampleMargin * std::sqrt(kStorageRoundings) * kRoundingRms * kUnitBf16;
  return std::min(kFloorBf16, storage + accumulation);
}

RoundingSums& RoundingSums::operator+=(const RoundingSums& other) {
  output_squares += other.output_squares;
  trace += other.trace;
  trace_of_square += other.trace_of_square;
  largest_token = std::max(largest_token, other.largest_token);
  worst += other.worst;
  magnitude += other.magnitude;
  return *this;
}

void TokenRounding::add(double value, double magnitude, std::span<const double> row) {
  double squares = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    squares += row[i] * row[i];
    add_size(i, std::abs(value * row[i]));
  }
  add_term(value, magnitude, squares);
}

void TokenRounding::add_term(double value, double magnitude, double row_squares) {
  const double own = value * value * row_squares;
  sums_.trace += own;
  sums_.trace_of_square += own * own;
  sums_.magnitude += magnitude * magnitude * row_squares;
}

RoundingSums TokenRounding::finish(std::span<const double> y) const {
  RoundingSums sums = sums_;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double own = y[i] * y[i];
    sums.output_squares += own;
    sums.trace += own;
    sums.trace_of_square += own * own;
    const double size = sizes_[i] + std::abs(y[i]);
    sums.worst += size * size;
  }
  sums.trace_of_square += sums.trace * sums.trace / static_cast<double>(y.size());
  sums.largest_token = sums.trace_of_square;
  return sums;
}

double sample_tolerance(Dtype dtype, std::int64_t reduction_length, const RoundingSums& rounding) {
  const double many = relative_error_tolerance(dtype, reduction_length);
  if (!(rounding.output_squares > 0) ||
      rounding.trace * rounding.trace >= kFewRoundings * rounding.trace_of_square) {
    return many;
  }
  const double likely = kRoundingRms * kRoundingRms *
                        (rounding.trace + 2 * std::sqrt(kChance * rounding.trace_of_square) +
                         2 * kChance * std::sqrt(rounding.largest_token));
  const double unit = dtype == Dtype::kBF16 ? kUnitBf16 : 0;
  const double storage = unit * std::sqrt(std::min(rounding.worst, likely) / rounding.output_squares);
  const double amplified =
      std::max(1.0, std::sqrt(rounding.magnitude / rounding.output_squares) / kAccumulationFactor);
  return std::max(many, storage + accumulation_error(reduction_length) * amplified);
}

// A score's error: each of its two logits is a sum of d products; every partial sum, of a size up to
// `partial_sum_scale`, is rounded once: a random walk of d steps of at most 2^-24 partial_sum_scale, taken at
// six standard deviations. Then a handful of roundings of values of the score's size: bias, s - max,
// log-sum-exp with the error of exp and log, and the sum of both marginals. The threshold moves by as much as
// the score, hence the 2.
double selection_tolerance(std::int64_t hidden_size, double partial_sum_scale, double score_scale) {
  return 2 * kUnitF32 *
         (kSelectionDeviations * std::sqrt(static_cast<double>(hidden_size)) * partial_sum_scale +
          kSelectionScoreRoundings * score_scale);
}

// One rounding as in derivation 1, and a random walk as in selection_tolerance.
double stored_product_error(Dtype dtype, std::int64_t reduction_length, double partial_sum_scale,
                            double magnitude) {
  const double storage = dtype == Dtype::kBF16 ? kRoundingRms * kUnitBf16 * magnitude : 0;
  return storage + kUnitF32 * (std::sqrt(static_cast<double>(reduction_length)) * partial_sum_scale +
                               kSelectionScoreRoundings * magnitude);
}

// Independent errors, at six standard deviations; the threshold moves by as much as the score, hence the 2.
double operand_selection_tolerance(double operand_error) { return 2 * kSelectionDeviations * operand_error; }

std::string ErrorReport::describe() const {
  return fmt::format("relative error {:.3g} (max {:.3g} at [{},{}]: {:.6g} against {:.6g}; mean {:.3g})",
                     relative_error, max_absolute_error, worst_row, worst_col, worst_out, worst_ref,
                     mean_absolute_error);
}

ErrorReport compare(const HostTensor& out, MatrixView<const double> reference) {
  if (out.rows() != reference.rows || out.cols() != reference.cols) {
    throw InvalidArgument("out", fmt::format("[{}, {}]", out.rows(), out.cols()),
                          fmt::format("must be [{}, {}] like the reference", reference.rows, reference.cols));
  }
  ErrorReport report;
  double error_squares = 0;
  double reference_squares = 0;
  double error_sum = 0;
  bool comparable = true;  // until the first NaN, which stays the worst element
  for (std::int64_t row = 0; row < out.rows(); ++row) {
    for (std::int64_t col = 0; col < out.cols(); ++col) {
      const double value = out.at(row, col);
      const double expected = reference.row(row)[col];
      const double error = std::abs(value - expected);
      error_squares += error * error;
      reference_squares += expected * expected;
      error_sum += error;
      const bool is_nan = std::isnan(error);
      if (comparable && (is_nan || report.worst_row < 0 || error > report.max_absolute_error)) {
        report.max_absolute_error = is_nan ? std::numeric_limits<double>::infinity() : error;
        report.worst_row = row;
        report.worst_col = col;
        report.worst_out = value;
        report.worst_ref = expected;
        comparable = !is_nan;
      }
    }
  }
  if (reference_squares == 0) {
    throw InvalidArgument("reference", "0", "is zero everywhere: no test data, any relative error would do");
  }
  const auto size = static_cast<double>(reference.size());
  report.relative_error =
      comparable ? std::sqrt(error_squares / reference_squares) : std::numeric_limits<double>::infinity();
  if (std::isnan(report.relative_error)) {  // an infinite reference
    report.relative_error = std::numeric_limits<double>::infinity();
  }
  report.mean_absolute_error = comparable ? error_sum / size : std::numeric_limits<double>::infinity();
  report.reference_rms = std::sqrt(reference_squares / size);
  return report;
}

}  // namespace moescope
