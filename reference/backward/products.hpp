#pragma once

#include "core/layer/tensor.hpp"

namespace moescope::reference {

/// a [m,k] times b [k,n], either in storage dtype: [m,n] fp32, added to `sum`. Bit-identical whatever the
/// number of threads.
void add_product_nn(const HostTensor& a, const HostTensor& b, HostTensor& sum);

/// a^T [k,m] times b [k,n], either in storage dtype: [m,n] fp32.
HostTensor matmul_tn(const HostTensor& a, const HostTensor& b);

}  // namespace moescope::reference
