// Output of the layer in bf16 storage: y [L,d] fp32 -> output [L,d]. Belongs to the layer's last stage, so
// it opens no range of its own.
#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda_raii.hpp"
#include "kernels/launch.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kValuesPerThread = 4;   // one 16-byte load
constexpr std::int64_t kMaxBlocks = 132 * 16;  // a few waves of any current GPU; the rest by stride

/// count is a multiple of 4, because d is a multiple of 8.
__global__ void __launch_bounds__(kThreads)
    round_output(const float4* __restrict__ y, uint2* __restrict__ output, std::int64_t count4) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count4; i += stride) {
    const float4 value = y[i];
    const __nv_bfloat162 low = __floats2bfloat162_rn(value.x, value.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(value.z, value.w);
    output[i] =
        make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
  }
}

}  // namespace

void launch_round_output(const LayerShape& shape, const float* y, void* output, cudaStream_t stream) {
  if (shape.dtype != Dtype::kBF16) {
    throw InternalError("round_output: with fp32 storage y is the output");
  }
  const std::int64_t count = shape.num_tokens * shape.hidden_size;
  const std::int64_t count4 = count / kValuesPerThread;
  const std::int64_t blocks = std::min((count4 + kThreads - 1) / kThreads, kMaxBlocks);
  round_output<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      static_cast<const float4*>(static_cast<const void*>(y)), static_cast<uint2*>(output), count4);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
