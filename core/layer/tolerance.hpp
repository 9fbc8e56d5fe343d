#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// Largest relative Frobenius error that a correct implementation may show against the fp64 oracle (DESIGN
/// section 9). Derivation in tolerance.cpp: rounding of the output and of the tensor-core operand P to
/// `dtype`, plus accumulation over `reduction_length` terms in fp32; never above the floor on quality (4e-3
/// bf16, 1e-5 fp32).
double relative_error_tolerance(Dtype dtype, std::int64_t reduction_length);

/// Sums over what is rounded on the way to the outputs of some tokens, from which follows how far a correct
/// output may be off when there are few of them (derivation 4 in tolerance.cpp). Lengths are those of the
/// outputs; `trace` and `worst` are to be multiplied with the square of a rounding's size.
struct RoundingSums {
  double output_squares = 0;   ///< ||y||^2
  double trace = 0;            ///< sum of ||term||^2: every rounding alone
  double trace_of_square = 0;  ///< of the matrix of the terms' products: small when there are many alike
  double largest_token = 0;    ///< of one token's trace_of_square
  double worst = 0;      ///< square of the error when all roundings are largest and none cancels another
  double magnitude = 0;  ///< as `trace` with the sizes of the dot products that the terms come from

  RoundingSums& operator+=(const RoundingSums& other);
};

/// Collects the roundings of one token.
class TokenRounding {
 public:
  explicit TokenRounding(std::int64_t hidden_size) : sizes_(static_cast<std::size_t>(hidden_size)) {}

  /// A value that is rounded to storage, whose product with a row of weights is added to the output.
  /// `magnitude`: the root of the sum of squares of the products that it comes from.
  void add(double value, double magnitude, std::span<const double> row);
  /// The same in parts, for weights that are read output by output: |value * weight| of one output ...
  void add_size(std::size_t output, double size) { sizes_[output] += size; }
  /// ... and the value with the row's sum of squares.
  void add_term(double value, double magnitude, double row_squares);
  /// The output itself is rounded last.
  RoundingSums finish(std::span<const double> y) const;

 private:
  std::vector<double> sizes_;  ///< per output, sum of |value * weight|
  RoundingSums sums_;
};

/// relative_error_tolerance(), or more when what is compared is so little that single roundings decide, or
/// its terms cancel. Of samples of kFewRoundings independent roundings on it is relative_error_tolerance().
double sample_tolerance(Dtype dtype, std::int64_t reduction_length, const RoundingSums& rounding);
inline constexpr double kFewRoundings = 1000;

/// How far from the K-th largest fp64 score a pair may lie that an fp32 selection takes or leaves differently
/// from the oracle. `partial_sum_scale`: largest partial sum of a row logit's dot product plus that of a
/// column logit; `score_scale`: largest magnitude among logits, log-sum-exps and scores involved. Derivation
/// in tolerance.cpp.
double selection_tolerance(std::int64_t hidden_size, double partial_sum_scale, double score_scale);

/// Absolute error of one element of a product that is kept in `dtype` for the next one (a query): its
/// rounding to storage, and the accumulation of `reduction_length` terms with partial sums up to
/// `partial_sum_scale`.
double stored_product_error(Dtype dtype, std::int64_t reduction_length, double partial_sum_scale,
                            double magnitude);
/// What such errors add to selection_tolerance(). `operand_error`: root sum of squares of (error of the
/// stored element * what it is multiplied with) over a score's terms, both halves added.
double operand_selection_tolerance(double operand_error);

/// Comparison of an output with a reference of the same extents.
struct ErrorReport {
  double relative_error = 0;  ///< ||out - ref||_F / ||ref||_F; NaN anywhere gives infinity
  double max_absolute_error = 0;
  double mean_absolute_error = 0;
  std::int64_t worst_row = -1;  ///< coordinate of the largest absolute error, or of the first NaN
  std::int64_t worst_col = -1;
  double worst_out = 0;
  double worst_ref = 0;
  double reference_rms = 0;  ///< sqrt(mean ref^2): a reference near zero is no test data
  /// The largest relative error of a correct output, where who compared knows it for this sample
  /// (sample_tolerance); else 0.
  double tolerance = 0;
  /// "relative error 1.2e-3 (max 3.1e-2 at [5,17]: 0.51 against 0.54; mean 1e-4)"
  std::string describe() const;
};

/// Throws InvalidArgument when extents differ or the reference is zero everywhere (refused as test data).
ErrorReport compare(const HostTensor& out, MatrixView<const double> reference);

}  // namespace moescope
