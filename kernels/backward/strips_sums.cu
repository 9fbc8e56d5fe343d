// Small passes around the backward on strips: dX out of its scaled sums, pairs of every expert, log-sum-exps.
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/contract/strips_backward.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/device/scaled_sums.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

/// One block per token.
template <class Sum>
__global__ void __launch_bounds__(kThreads)
    strips_finish(const Sum* __restrict__ sums, const std::int32_t* __restrict__ exponents, bool adds,
                  float4* dx, int row4) {
  const std::int64_t token = blockIdx.x;
  wait_for_predecessor();
  const float scale = scale_of(exponents[token]);
  for (int i = static_cast<int>(threadIdx.x); i < row4; i += kThreads) {
    const std::int64_t at = token * row4 + i;
    const float4 sum = to_floats(sums + at * 4);
    const float4 more = adds ? dx[at] : make_float4(0, 0, 0, 0);
    dx[at] = make_float4(fmaf(sum.x, scale, more.x), fmaf(sum.y, scale, more.y), fmaf(sum.z, scale, more.z),
                         fmaf(sum.w, scale, more.w));
  }
}

/// One block per token; integers, so that the order of additions changes nothing.
__global__ void __launch_bounds__(kThreads)
    strips_loads(DeviceStrips strips, int rows, int cols, int max_cover, std::int32_t* loads) {
  const std::int64_t token = blockIdx.x;
  wait_for_predecessor();
  const float threshold = strips.threshold[token];
  const std::int32_t limit = strips.tie_limit[token];
  const float* const col_p = strips.col_log_probs + token * cols;
  for (int e = 0; e < strips.cover_sizes[token]; ++e) {
    const int strip = strips.cover[token * max_cover + e];
    const bool is_row = strip < rows;
    for (int i = static_cast<int>(threadIdx.x); i < (is_row ? cols : rows); i += kThreads) {
      const int row = is_row ? strip : i;
      const int col = is_row ? i : strip - rows;
      const float row_p = (is_row ? strips.row_log_probs : strips.uncovered_rows)[token * rows + row];
      const float sum = row_p + col_p[col];
      const std::int32_t id = row * cols + col;
      if (sum > threshold || (sum == threshold && id <= limit)) {
        atomicAdd(loads + id, 1);
      }
    }
  }
}

__global__ void __launch_bounds__(kThreads)
    strips_log_sums(const float* logits, DeviceStrips strips, int rows, int cols, std::int64_t num_tokens,
                    float* lse) {
  const std::int64_t token = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  wait_for_predecessor();
  if (token < num_tokens) {
    const float* const own = logits + token * (rows + cols);
    lse[token] = own[0] - strips.row_log_probs[token * rows];
    lse[num_tokens + token] = own[rows] - strips.col_log_probs[token * cols];
  }
}

}  // namespace

void launch_strips_finish(const LayerShape& shape, StaircaseOutput sums, bool adds, float* dx,
                          cudaStream_t stream) {
  shape.validate();
  const StageRange range(Stage::kExpertsDgrad);
  const LaunchShape launch{.grid = dim3(static_cast<unsigned>(shape.num_tokens)), .block = dim3(kThreads)};
  const auto row4 = static_cast<int>(shape.hidden_size / 4);
  auto* const values = static_cast<float4*>(static_cast<void*>(dx));
  if (sums.kind == StaircaseSums::kFp16) {
    launch_dependent(strips_finish<__half>, launch, stream, static_cast<const __half*>(sums.sums),
                     static_cast<const std::int32_t*>(sums.exponents), adds, values, row4);
  } else {
    launch_dependent(strips_finish<std::int32_t>, launch, stream, static_cast<const std::int32_t*>(sums.sums),
                     static_cast<const std::int32_t*>(sums.exponents), adds, values, row4);
  }
}

void launch_strips_loads(const LayerShape& shape, StripRule rule, DeviceStrips strips, std::int32_t* loads,
                         cudaStream_t stream) {
  shape.validate();
  strips_loads<<<static_cast<unsigned>(shape.num_tokens), kThreads, 0, stream>>>(
      strips, static_cast<int>(shape.grid_rows), static_cast<int>(shape.grid_cols),
      static_cast<int>(max_strips_of_token(shape, rule)), loads);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_strips_log_sums(const LayerShape& shape, const float* logits, DeviceStrips strips, float* lse,
                            cudaStream_t stream) {
  shape.validate();
  const std::int64_t blocks = ceil_div(shape.num_tokens, std::int64_t{kThreads});
  strips_log_sums<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(
      logits, strips, static_cast<int>(shape.grid_rows), static_cast<int>(shape.grid_cols), shape.num_tokens,
      lse);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
