#pragma once

#include "core/tensor.hpp"

namespace moescope::reference {

/// a [m,k] times b^T [n,k], both in storage dtype: [m,n] fp32. Bit-identical whatever the number of threads.
HostTensor matmul_nt(const HostTensor& a, const HostTensor& b);

}  // namespace moescope::reference
