#pragma once

#include <Eigen/Core>

#include "reference/stages/rounding.hpp"
#include "reference/stages/row_ops.hpp"

/// Eigen's view of our row-major matrices; included by .cpp files only, so that users of reference/ need no
/// Eigen.
namespace moescope::reference {

using MatrixF32 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixF32Ref = Eigen::Ref<MatrixF32, 0, Eigen::OuterStride<>>;
using MatrixF32Map = Eigen::Map<MatrixF32>;

/// Rows [first, first + target.rows()) of `source`, widened to fp32.
inline void load_rows(const HostTensor& source, std::int64_t first, MatrixF32Ref target) {
  with_storage_type(source.dtype(), [&]<class T>(T) {
    const auto view = view_as<T>(source);
    for (std::int64_t r = 0; r < target.rows(); ++r) {
      load_row(view.row(first + r), view.cols, target.row(r).data());
    }
  });
}

}  // namespace moescope::reference
