// router_project_backward: dWr and dWc = da^T X as one product, dX += da Wr + db Wc as another. The logits'
// gradients are rounded to storage first, as operands; their rows are padded to 16 bytes.
#include <cuda_bf16.h>

#include "kernels/contract/backward.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;

std::int64_t lead_of(const LayerShape& shape) {
  constexpr std::int64_t kMultiple = 8;
  return (shape.grid_rows + shape.grid_cols + kMultiple - 1) / kMultiple * kMultiple;
}

__global__ void __launch_bounds__(kThreads)
    round_operands_kernel(std::int64_t elements, std::int64_t lead, std::int64_t columns, const float* from,
                          __nv_bfloat16* to) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < elements) {
    const std::int64_t token = at / lead;
    const std::int64_t column = at % lead;
    to[at] = __float2bfloat16_rn(column < columns ? from[token * columns + column] : 0.0F);
  }
}

}  // namespace

std::int64_t router_project_backward_workspace_bytes(const LayerShape& shape) {
  return shape.dtype == Dtype::kF32 ? 0 : shape.num_tokens * lead_of(shape) * dtype_bytes(shape.dtype);
}

void launch_router_project_backward(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                    const DeviceWeights& weights, const float* logits_gradient,
                                    RouterGradients output, float* dx, void* workspace, cudaStream_t stream) {
  const StageRange range(Stage::kRouterProjectBackward);
  const std::int64_t columns = shape.grid_rows + shape.grid_cols;
  const void* operands = logits_gradient;
  std::int64_t lead = columns;
  if (shape.dtype == Dtype::kBF16) {
    lead = lead_of(shape);
    const std::int64_t elements = shape.num_tokens * lead;
    round_operands_kernel<<<static_cast<unsigned>((elements + kThreads - 1) / kThreads), kThreads, 0,
                            stream>>>(elements, lead, columns, logits_gradient,
                                      static_cast<__nv_bfloat16*>(workspace));
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
    operands = workspace;
  }
  Gemm matrix;
  matrix.m = columns;
  matrix.n = shape.hidden_size;
  matrix.k = shape.num_tokens;
  matrix.transpose_a = true;
  matrix.transpose_b = false;
  matrix.in = shape.dtype;
  matrix.out = output.dtype;
  matrix.a = operands;
  matrix.lda = lead;
  matrix.b = hidden_states;
  matrix.d = output.matrix;
  matrix.beta = output.adds ? 1.0F : 0.0F;
  blas.run(matrix, stream);

  Gemm input;
  input.m = shape.num_tokens;
  input.n = shape.hidden_size;
  input.k = columns;
  input.transpose_b = false;
  input.in = shape.dtype;
  input.a = operands;
  input.lda = lead;
  input.b = weights.router;
  input.d = dx;
  input.beta = 1;
  blas.run(input, stream);
}

}  // namespace moescope::cuda
