#pragma once

#include "core/layer/tensor.hpp"

namespace moescope::reference {

/// a [m,k] times b^T [n,k], both in storage dtype: [m,n] fp32. Bit-identical whatever the number of threads.
HostTensor matmul_nt(const HostTensor& a, const HostTensor& b);

/// What each thread of it works with, and one more of it, for rows of this length.
double matmul_scratch_bytes(std::int64_t length);

/// The same for scores that are compared with each other: how an element is summed depends on the length
/// alone (dot() of row_ops.hpp), so equal rows of b give equal columns, wherever they stand. A blocked
/// product does not: its edges add in another order.
HostTensor scores_nt(const HostTensor& a, const HostTensor& b);

double scores_scratch_bytes(std::int64_t length);

/// That for rows in fp32: out[r * out_stride + c] = a[r] . b[c].
void dot_rows(MatrixView<const float> a, MatrixView<const float> b, float* out, std::int64_t out_stride);

/// sum += term, both fp32 of the same extents.
void add_in_place(HostTensor& sum, const HostTensor& term);

}  // namespace moescope::reference
