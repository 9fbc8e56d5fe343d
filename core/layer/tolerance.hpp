#pragma once

#include <cstdint>
#include <string>

#include "core/layer/layer_shape.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// Largest relative Frobenius error that a correct implementation may show against the fp64 oracle (DESIGN
/// section 9). Derivation in tolerance.cpp: rounding of the output and of the tensor-core operand P to
/// `dtype`, plus accumulation over `reduction_length` terms in fp32; never above the floor on quality (4e-3
/// bf16, 1e-5 fp32).
double relative_error_tolerance(Dtype dtype, std::int64_t reduction_length);

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
  /// "relative error 1.2e-3 (max 3.1e-2 at [5,17]: 0.51 against 0.54; mean 1e-4)"
  std::string describe() const;
};

/// Throws InvalidArgument when extents differ or the reference is zero everywhere (refused as test data).
ErrorReport compare(const HostTensor& out, MatrixView<const double> reference);

}  // namespace moescope
