#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "kernels/contract/strips.hpp"

/// A backward on strips whose memory fits counts that the caller gave, not all that a batch can select.
namespace moescope::capi::gpu {

/// *exceeded: whether strips have more entries or tiles than there is room for; they are then emptied, so
/// that nothing is written outside.
void launch_limit_strips(const LayerShape& shape, cuda::DeviceStrips strips, std::int64_t entries,
                         std::int64_t tiles, std::int32_t* exceeded, cudaStream_t stream);

/// `count` values become NaN where *exceeded.
void launch_poison(const std::int32_t* exceeded, float* values, std::int64_t count, cudaStream_t stream);

}  // namespace moescope::capi::gpu
