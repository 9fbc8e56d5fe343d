#pragma once

#include <Eigen/Core>

#include "core/tensor.hpp"

namespace moescope::reference {

using MatrixF32 = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using MatrixF32Ref = Eigen::Ref<MatrixF32, 0, Eigen::OuterStride<>>;
using MatrixF32Map = Eigen::Map<MatrixF32>;

/// Rows [first, first + target.rows()) of `source`, widened to fp32.
void load_rows(const HostTensor& source, std::int64_t first, MatrixF32Ref target);

/// a [m,k] times b^T [n,k], both in storage dtype: [m,n] fp32. Bit-identical whatever the number of threads.
HostTensor matmul_nt(const HostTensor& a, const HostTensor& b);

}  // namespace moescope::reference
