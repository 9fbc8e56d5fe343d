// shared_mlp_backward: of y = hidden down^T with hidden = act(gate) * up, gate = x G^T, up = x U^T:
// dhidden = dy down, dgate = dhidden * up * act'(gate), dup = dhidden * act(gate). Gate and up are computed
// again. Five products (gate and up lie in one matrix) with one elementwise kernel between them, over the
// whole batch: the weights' gradients are sums over all tokens.
#include <cuda_bf16.h>

#include <cstddef>

#include "kernels/contract/backward.hpp"
#include "kernels/device/activation_slope.cuh"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kAlignment = 256;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Buffers in order; rows of operands are padded to 16 bytes.
struct Layout {
  std::int64_t hidden_lead;  ///< elements
  std::int64_t both_lead;
  std::int64_t dhidden;  ///< [L, h] fp32, behind gate and up [L, 2h] fp32
  std::int64_t hidden;   ///< [L, hidden_lead] storage
  std::int64_t both;     ///< [L, both_lead] storage: dgate, dup
  std::int64_t bytes;

  explicit Layout(const LayerShape& shape) {
    constexpr std::int64_t kMultiple = 8;
    const std::int64_t element = dtype_bytes(shape.dtype);
    const std::int64_t h = shape.shared_size;
    hidden_lead = round_up(h, kMultiple);
    both_lead = round_up(2 * h, kMultiple);
    dhidden = round_up(shape.num_tokens * 2 * h * 4, kAlignment);
    hidden = dhidden + round_up(shape.num_tokens * h * 4, kAlignment);
    both = hidden + round_up(shape.num_tokens * hidden_lead * element, kAlignment);
    bytes = both + shape.num_tokens * both_lead * element;
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(std::int64_t elements, std::int64_t h, Activation activation, const float* gate_up,
                         const float* dhidden, T* hidden, std::int64_t hidden_lead, T* both,
                         std::int64_t both_lead) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= elements) {
    return;
  }
  const std::int64_t token = at / h;
  const std::int64_t j = at % h;
  const float gate = gate_up[token * 2 * h + j];
  const float up = gate_up[token * 2 * h + h + j];
  const float back = dhidden[at];
  const ActivationValue a = activate_with_slope(activation, gate);
  hidden[token * hidden_lead + j] = static_cast<T>(a.value * up);
  both[token * both_lead + j] = static_cast<T>(back * up * a.slope);
  both[token * both_lead + h + j] = static_cast<T>(back * a.value);
}

}  // namespace

std::int64_t shared_mlp_backward_workspace_bytes(const LayerShape& shape) {
  return shape.shared_size == 0 ? 0 : Layout(shape).bytes;
}

void launch_shared_mlp_backward(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                const void* dy, const DeviceWeights& weights, SharedGradients output,
                                float* dx, void* workspace, cudaStream_t stream) {
  const StageRange range(Stage::kSharedMlpBackward);
  const Layout layout(shape);
  const std::int64_t h = shape.shared_size;
  auto* const base = static_cast<std::byte*>(workspace);
  Gemm gate_up;
  gate_up.m = shape.num_tokens;
  gate_up.n = 2 * h;
  gate_up.k = shape.hidden_size;
  gate_up.in = shape.dtype;
  gate_up.a = hidden_states;
  gate_up.b = weights.shared_gate_up;
  gate_up.d = base;
  blas.run(gate_up, stream);

  Gemm dhidden;
  dhidden.m = shape.num_tokens;
  dhidden.n = h;
  dhidden.k = shape.hidden_size;
  dhidden.transpose_b = false;
  dhidden.in = shape.dtype;
  dhidden.a = dy;
  dhidden.b = weights.shared_down;
  dhidden.d = base + layout.dhidden;
  blas.run(dhidden, stream);

  const std::int64_t elements = shape.num_tokens * h;
  const auto blocks = static_cast<unsigned>((elements + kThreads - 1) / kThreads);
  const auto* const gates = reinterpret_cast<const float*>(base);
  const auto* const back = reinterpret_cast<const float*>(base + layout.dhidden);
  const auto run = [&]<class T>(T /*type*/) {
    gate_backward_kernel<T><<<blocks, kThreads, 0, stream>>>(
        elements, h, shape.activation, gates, back, reinterpret_cast<T*>(base + layout.hidden),
        layout.hidden_lead, reinterpret_cast<T*>(base + layout.both), layout.both_lead);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
  };
  if (shape.dtype == Dtype::kBF16) {
    run(__nv_bfloat16{});
  } else {
    run(float{});
  }

  Gemm input;
  input.m = shape.num_tokens;
  input.n = shape.hidden_size;
  input.k = 2 * h;
  input.transpose_b = false;
  input.in = shape.dtype;
  input.a = base + layout.both;
  input.lda = layout.both_lead;
  input.b = weights.shared_gate_up;
  input.d = dx;
  blas.run(input, stream);

  Gemm matrices;
  matrices.m = 2 * h;
  matrices.n = shape.hidden_size;
  matrices.k = shape.num_tokens;
  matrices.transpose_a = true;
  matrices.transpose_b = false;
  matrices.in = shape.dtype;
  matrices.out = output.dtype;
  matrices.a = base + layout.both;
  matrices.lda = layout.both_lead;
  matrices.b = hidden_states;
  matrices.d = output.gate_up;
  matrices.beta = output.adds ? 1.0F : 0.0F;
  blas.run(matrices, stream);

  Gemm down;
  down.m = shape.hidden_size;
  down.n = h;
  down.k = shape.num_tokens;
  down.transpose_a = true;
  down.transpose_b = false;
  down.in = shape.dtype;
  down.out = output.dtype;
  down.a = dy;
  down.b = base + layout.hidden;
  down.ldb = layout.hidden_lead;
  down.d = output.down;
  down.beta = output.adds ? 1.0F : 0.0F;
  blas.run(down, stream);
}

}  // namespace moescope::cuda
