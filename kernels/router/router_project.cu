// Stage router_project (paper eq. 9): logits [L, Nr+Nc] fp32 = X [L,d] @ router [Nr+Nc,d]^T + bias. One
// product for rows and columns, the bias in its epilogue; inputs in storage dtype, accumulation fp32.
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

void launch_router_project(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                           const DeviceWeights& weights, float* logits, cudaStream_t stream) {
  const StageRange range(Stage::kRouterProject);
  Gemm gemm;
  gemm.m = shape.num_tokens;
  gemm.n = shape.grid_rows + shape.grid_cols;
  gemm.k = shape.hidden_size;
  gemm.in = shape.dtype;
  gemm.out = Dtype::kF32;
  gemm.a = hidden_states;
  gemm.b = weights.router;
  gemm.bias = weights.router_bias;
  gemm.d = logits;
  blas.run(gemm, stream);
}

}  // namespace moescope::cuda
