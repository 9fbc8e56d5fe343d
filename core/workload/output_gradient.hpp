#pragma once

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// dY of a synthetic training step: [L,d] in storage dtype, N(0, 1). Bit-identical on every machine for one
/// (shape, seed). Throws InvalidArgument for a shape that cannot be.
HostTensor make_output_gradient(const LayerShape& shape, std::uint64_t seed);

}  // namespace moescope
