// Stage router_project of PKM and PEER: queries = X Wq^T, of PKM every half query through a layer norm,
// rounded to storage; scores = queries keys^T for every head and half. The weights lie head by head with its
// two halves together (system_buffers.cpp), so that a batched product writes the scores as
// launch_router_select reads them. Floor: X, Wq and keys once, scores [L, H, 2 n] fp32 written; 4 L H
// key_size (d + n) FLOP.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/device/dependent_launch.cuh"
#include "kernels/router/router_select_marginals.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr float kNormEps = 1e-5F;  // torch.nn.LayerNorm's
constexpr std::int64_t kBlocksPerSm = 16;

/// A warp per half query: (v - mean) / sqrt(var + eps) * weight + bias, rounded to T. `in` and `out`: [count,
/// key_size].
template <class T>
__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(const float* __restrict__ in, const float* __restrict__ weight,
                      const float* __restrict__ bias, T* __restrict__ out, std::int64_t count,
                      std::int32_t key_size) {
  release_successor();
  wait_for_predecessor();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t stride = std::int64_t{gridDim.x} * kWarps;
  for (std::int64_t half = std::int64_t{blockIdx.x} * kWarps + static_cast<int>(threadIdx.x) / kWarp;
       half < count; half += stride) {
    const float* const v = in + half * key_size;
    float sum = 0;
    for (int i = lane; i < key_size; i += kWarp) {
      sum += v[i];
    }
    const float mean = warp_sum(sum) / static_cast<float>(key_size);
    float squares = 0;
    for (int i = lane; i < key_size; i += kWarp) {
      squares += (v[i] - mean) * (v[i] - mean);
    }
    const float scale = 1.0F / sqrtf(warp_sum(squares) / static_cast<float>(key_size) + kNormEps);
    for (int i = lane; i < key_size; i += kWarp) {
      out[half * key_size + i] = static_cast<T>((v[i] - mean) * scale * weight[i] + bias[i]);
    }
  }
}

template <class T>
void launch_layer_norm(const float* in, const ProductKeys& keys, void* out, std::int64_t count,
                       std::int64_t key_size, cudaStream_t stream) {
  const std::int64_t blocks = std::min(ceil_div(count, kWarps), kBlocksPerSm * current_gpu().num_sms);
  launch_dependent(
      layer_norm_kernel<T>, {.grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads)}, stream,
      in, keys.norm_weight, keys.norm_bias, static_cast<T*>(out), count, static_cast<std::int32_t>(key_size));
}

/// Of the queries in storage; those before the norm, fp32, come after.
std::int64_t stored_bytes(const SystemShape& shape) {
  return round_up(shape.num_queries() * 2 * shape.key_size * dtype_bytes(shape.dtype), 256);
}

}  // namespace

std::int64_t product_key_workspace_bytes(const SystemShape& shape, bool has_norm) {
  const std::int64_t before_norm =
      has_norm ? shape.num_queries() * 2 * shape.key_size * dtype_bytes(Dtype::kF32) : 0;
  return stored_bytes(shape) + before_norm;
}

void launch_product_key_scores(CublasLt& blas, const SystemShape& shape, const void* hidden_states,
                               const ProductKeys& keys, void* workspace, float* scores, cudaStream_t stream) {
  const StageRange range(Stage::kRouterProject);
  const bool has_norm = keys.norm_weight != nullptr;
  const std::int64_t halves = 2 * shape.heads;
  const std::int64_t n = shape.num_keys();
  auto* const queries = static_cast<std::byte*>(workspace);
  auto* const before_norm = reinterpret_cast<float*>(queries + stored_bytes(shape));

  Gemm project;
  project.m = shape.num_tokens;
  project.n = halves * shape.key_size;
  project.k = shape.hidden_size;
  project.in = shape.dtype;
  project.out = has_norm ? Dtype::kF32 : shape.dtype;
  project.a = hidden_states;
  project.b = keys.queries;
  project.d = has_norm ? static_cast<void*>(before_norm) : queries;
  blas.run(project, stream);

  if (has_norm) {
    const std::int64_t count = shape.num_tokens * halves;
    if (shape.dtype == Dtype::kBF16) {
      launch_layer_norm<__nv_bfloat16>(before_norm, keys, queries, count, shape.key_size, stream);
    } else {
      launch_layer_norm<float>(before_norm, keys, queries, count, shape.key_size, stream);
    }
  }

  Gemm score;
  score.m = shape.num_tokens;
  score.n = n;
  score.k = shape.key_size;
  score.in = shape.dtype;
  score.a = queries;
  score.lda = halves * shape.key_size;
  score.b = keys.keys;
  score.d = scores;
  score.ldd = halves * n;
  score.batch = halves;
  score.stride_a = shape.key_size;
  score.stride_b = n * shape.key_size;
  score.stride_d = n;
  blas.run(score, stream);
}

}  // namespace moescope::cuda
