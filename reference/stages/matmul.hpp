#pragma once

#include "core/layer/tensor.hpp"

namespace moescope::reference {

/// a [m,k] times b^T [n,k], both in storage dtype: [m,n] fp32. Bit-identical whatever the number of threads.
HostTensor matmul_nt(const HostTensor& a, const HostTensor& b);

/// sum += term, both fp32 of the same extents.
void add_in_place(HostTensor& sum, const HostTensor& term);

}  // namespace moescope::reference
