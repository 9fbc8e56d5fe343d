// Output of the layer: y [L,d] fp32 or the staircase kernel's scaled sums, plus the shared MLP's result where
// there is one, in storage dtype. Belongs to the layer's last stage, so it opens no range of its own.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <type_traits>

#include "kernels/contract/launch.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/device/scaled_sums.cuh"
#include "kernels/runtime/device_info.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kValuesPerThread = 4;  // one 16-byte load

/// A few waves; the rest by stride.
std::int64_t max_blocks() { return 16 * current_gpu().num_sms; }

/// count4 groups of 4 values, because d is a multiple of 8. `addend` may be null, and Output a float4 at y.
template <class Output>
__global__ void __launch_bounds__(kThreads)
    round_output(const float4* y, const float4* addend, Output* output, std::int64_t count4) {
  wait_for_predecessor();
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count4; i += stride) {
    float4 value = y[i];
    if (addend != nullptr) {
      const float4 more = addend[i];
      value = {value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w};
    }
    if constexpr (sizeof(Output) == sizeof(uint2)) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(value.x, value.y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(value.z, value.w);
      output[i] =
          make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
    } else {
      output[i] = value;
    }
  }
}

/// One block per token and stride; `log_scales` and `addend` may be null.
template <class Sum>
__global__ void __launch_bounds__(kThreads)
    round_sums(const Sum* __restrict__ sums, const std::int32_t* __restrict__ exponents,
               const float* __restrict__ log_scales, const float4* __restrict__ addend,
               uint2* __restrict__ output, std::int64_t num_tokens, std::int32_t row4) {
  wait_for_predecessor();
  for (std::int64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    float scale = scale_of(exponents[token]);
    if (log_scales != nullptr) {
      scale *= expf(log_scales[token]);
    }
    for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < row4; i += kThreads) {
      const std::int64_t at = token * row4 + i;
      const float4 sum = to_floats(sums + at * kValuesPerThread);
      const float4 more = addend == nullptr ? make_float4(0, 0, 0, 0) : addend[at];
      const __nv_bfloat162 low =
          __floats2bfloat162_rn(fmaf(sum.x, scale, more.x), fmaf(sum.y, scale, more.y));
      const __nv_bfloat162 high =
          __floats2bfloat162_rn(fmaf(sum.z, scale, more.z), fmaf(sum.w, scale, more.w));
      output[at] =
          make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
    }
  }
}

}  // namespace

void launch_round_output(const LayerShape& shape, const float* y, const float* addend, void* output,
                         cudaStream_t stream) {
  const std::int64_t count4 = shape.num_tokens * shape.hidden_size / kValuesPerThread;
  const std::int64_t blocks = std::min((count4 + kThreads - 1) / kThreads, max_blocks());
  const auto* const values = static_cast<const float4*>(static_cast<const void*>(y));
  const auto* const more = static_cast<const float4*>(static_cast<const void*>(addend));
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)};
  if (shape.dtype == Dtype::kBF16) {
    launch_dependent(round_output<uint2>, launch, stream, values, more, static_cast<uint2*>(output), count4);
  } else {
    launch_dependent(round_output<float4>, launch, stream, values, more, static_cast<float4*>(output),
                     count4);
  }
}

void launch_round_output(const LayerShape& shape, const StaircaseOutput& sums, const float* addend,
                         void* output, cudaStream_t stream) {
  if (shape.dtype != Dtype::kBF16) {
    throw InternalError("round_output: staircase sums belong to bf16 storage");
  }
  const auto launch = [&](const auto* typed) {
    launch_dependent(round_sums<std::remove_cvref_t<decltype(*typed)>>,
                     {.grid = dim3(static_cast<unsigned>(std::min(shape.num_tokens, max_blocks()))),
                      .block = dim3(kThreads)},
                     stream, typed, static_cast<const std::int32_t*>(sums.exponents), sums.log_scales,
                     static_cast<const float4*>(static_cast<const void*>(addend)),
                     static_cast<uint2*>(output), shape.num_tokens,
                     static_cast<std::int32_t>(shape.hidden_size / kValuesPerThread));
  };
  if (sums.kind == StaircaseSums::kFp16) {
    launch(static_cast<const __half*>(sums.sums));
  } else {
    launch(static_cast<const std::int32_t*>(sums.sums));
  }
}

}  // namespace moescope::cuda
