// Stage shared_mlp (paper eq. 7): y [L,d] fp32 = h down^T, h = act(x gate^T) * (x up^T) rounded to storage.
// Two cuBLASLt products and one elementwise kernel, over chunks of tokens that bound the memory.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/tiling/chunks.hpp"
#include "kernels/contract/gated_mlp.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

std::int64_t row_bytes(const LayerShape& shape) { return SharedMlpChunks::row_bytes(shape.shared_size); }

std::int64_t chunk_tokens(const LayerShape& shape) {
  return SharedMlpChunks::tokens(shape.num_tokens, shape.shared_size);
}

/// One block per token. In: gate_up [tokens, 2h] fp32, gate then up. Out: h in storage dtype T at the start
/// of the same row, so that no second buffer is needed. In place is safe because columns go in steps of
/// kThreads, a step is read by all before any of it is written, and h_j is never stored beyond the place of
/// gate_j.
template <Activation kActivation, class T>
__global__ void __launch_bounds__(kThreads) activate_gate(float* gate_up, std::int64_t shared_size) {
  float* const row = gate_up + std::int64_t{blockIdx.x} * 2 * shared_size;
  for (std::int64_t first = 0; first < shared_size; first += kThreads) {
    const std::int64_t j = first + threadIdx.x;
    const bool inside = j < shared_size;
    const float h = inside ? activate<kActivation>(row[j]) * row[shared_size + j] : 0.0F;
    __syncthreads();
    if (inside) {
      reinterpret_cast<T*>(row)[j] = static_cast<T>(h);
    }
  }
}

template <class T>
void launch_activate(Activation activation, float* gate_up, std::int64_t tokens, std::int64_t shared_size,
                     cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(tokens);
  switch (activation) {
    case Activation::kSilu:
      activate_gate<Activation::kSilu, T><<<blocks, kThreads, 0, stream>>>(gate_up, shared_size);
      break;
    case Activation::kGelu:
      activate_gate<Activation::kGelu, T><<<blocks, kThreads, 0, stream>>>(gate_up, shared_size);
      break;
    case Activation::kRelu:
      activate_gate<Activation::kRelu, T><<<blocks, kThreads, 0, stream>>>(gate_up, shared_size);
      break;
  }
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

std::int64_t shared_mlp_workspace_bytes(const LayerShape& shape) {
  return shape.shared_size == 0 ? 0 : chunk_tokens(shape) * row_bytes(shape);
}

void launch_shared_mlp(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                       const DeviceWeights& weights, void* workspace, float* y, cudaStream_t stream) {
  launch_gated_mlp(blas, shape, hidden_states,
                   {.gate = weights.shared_gate_up, .up = nullptr, .down = weights.shared_down}, workspace, y,
                   stream);
}

void launch_gated_mlp(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                      const GatedMlpWeights& weights, void* workspace, float* y, cudaStream_t stream) {
  const StageRange range(Stage::kSharedMlp);
  const std::int64_t d = shape.hidden_size;
  const std::int64_t h = shape.shared_size;
  const std::int64_t chunk = chunk_tokens(shape);
  const auto* const x = static_cast<const std::byte*>(hidden_states);
  auto* const gate_up = static_cast<float*>(workspace);
  for (std::int64_t first = 0; first < shape.num_tokens; first += chunk) {
    const std::int64_t tokens = std::min(chunk, shape.num_tokens - first);
    Gemm up;
    up.m = tokens;
    up.n = 2 * h;
    up.k = d;
    up.in = shape.dtype;
    up.a = x + first * d * dtype_bytes(shape.dtype);
    up.b = weights.gate;
    up.d = gate_up;
    if (weights.up != nullptr) {  // both halves of a row, one product each
      up.n = h;
      up.ldd = 2 * h;
      blas.run(up, stream);
      up.b = weights.up;
      up.d = gate_up + h;
    }
    blas.run(up, stream);

    if (shape.dtype == Dtype::kBF16) {
      launch_activate<__nv_bfloat16>(shape.activation, gate_up, tokens, h, stream);
    } else {
      launch_activate<float>(shape.activation, gate_up, tokens, h, stream);
    }

    Gemm down;
    down.m = tokens;
    down.n = d;
    down.k = h;
    down.in = shape.dtype;
    down.a = gate_up;
    down.lda = row_bytes(shape) / dtype_bytes(shape.dtype);
    down.b = weights.down;
    down.d = y + first * d;
    blas.run(down, stream);
  }
}

}  // namespace moescope::cuda
