#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/layer/training.hpp"
#include "kernels/contract/launch.hpp"

/// Launchers of the backward's kernels. Conventions as in launch.hpp; symbols as in core/layer/training.hpp.
/// All of them are deterministic: the same bits in every run.
namespace moescope::cuda {

/// What belongs to pairs between the stages, in CSR order, fp32.
struct DevicePairGradients {
  float* gates = nullptr;  ///< [M] gradients of the gates, u a
  float* p = nullptr;      ///< [M] gate * a
  float* q = nullptr;      ///< [M] gradients of z
};

/// Log-probabilities of rows and columns; `lead` elements from token to token.
struct DeviceLogProbs {
  const float* row = nullptr;  ///< [L,Nr]
  const float* col = nullptr;  ///< [L,Nc]
  std::int64_t row_lead = 0;
  std::int64_t col_lead = 0;
};

/// Device pointers of the experts' data gradients.
struct DgradInputs {
  const void* hidden_states = nullptr;  ///< X [L,d]
  const void* dy = nullptr;             ///< dY [L,d]
  const float* saved = nullptr;         ///< [M] z of every pair; null: computed again
  float* save = nullptr;                ///< [M] where z is left; null: nowhere
};

// experts_dgrad.cu: token by token; each pair reads one row of W and one of V once. dx [L,d] fp32 is written,
// or added to where `adds`. The workspace is zero before its first use and left so.
std::int64_t experts_dgrad_workspace_bytes(const LayerShape& shape, const GpuTraits& gpu);
void launch_experts_dgrad(const LayerShape& shape, const DgradInputs& inputs, const DeviceWeights& weights,
                          DeviceRouting routing, DevicePairGradients pairs, void* workspace, bool adds,
                          float* dx, cudaStream_t stream);

/// Pairs by expert: expert i has pairs[offsets[i], offsets[i+1]), ascending, hence tokens ascending.
struct DevicePairsByExpert {
  std::int32_t* offsets = nullptr;        ///< [N+1]
  std::int32_t* pairs = nullptr;          ///< [M]
  std::int32_t* touched = nullptr;        ///< [N] experts with pairs, ascending
  std::int32_t* touched_count = nullptr;  ///< [1]
  /// [N+1] where the pairs of touched[j] begin in `pairs`, behind the last one M. Null: not wanted, and no
  /// GradientForm but kStored works.
  std::int32_t* touched_offsets = nullptr;
};

// schedule/pairs_by_expert.cu: a stable sort of the pairs by expert, and the list of touched experts. Throws
// InvalidArgument when L*K or N is 2^31 or more.
std::int64_t pairs_by_expert_workspace_bytes(const LayerShape& shape);
void launch_pairs_by_expert(const LayerShape& shape, DeviceRouting routing, DevicePairsByExpert sorted,
                            void* workspace, cudaStream_t stream);
/// The same lists for few tokens (schedule/few_pairs_by_expert.cu), without a sort: a bit a token for each expert has their order. Tokens have
/// distinct experts. pairs_are_few() says whether there are few; not for callers whose tokens list an expert
/// twice.
bool pairs_are_few(const LayerShape& shape);
std::int64_t few_pairs_by_expert_workspace_bytes(const LayerShape& shape);
void launch_few_pairs_by_expert(const LayerShape& shape, DeviceRouting routing, DevicePairsByExpert sorted,
                                void* workspace, cudaStream_t stream);
/// Experts with a load, ascending, and how many; the workspace is what listing alone takes.
std::int64_t touched_experts_workspace_bytes(const LayerShape& shape);
void launch_touched_experts(const LayerShape& shape, const std::int32_t* loads, std::int32_t* touched,
                            std::int32_t* count, void* workspace, cudaStream_t stream);
/// loads[i] += pairs of expert i.
void launch_expert_loads(const LayerShape& shape, DeviceRouting routing, std::int32_t* loads,
                         cudaStream_t stream);

/// Where the experts' weight gradients go: [N,d] in `dtype`. A kernel may write zeros to rows that `form`
/// leaves out under kTouched.
struct WgradOutput {
  Dtype dtype = Dtype::kBF16;
  void* w_in = nullptr;
  void* w_out = nullptr;
  GradientForm form = GradientForm::kStored;
};
// experts_wgrad.cu: one owner for an expert's columns, who adds its pairs in order.
void launch_experts_wgrad(const LayerShape& shape, const void* hidden_states, const void* dy,
                          DevicePairGradients pairs, DevicePairsByExpert sorted, WgradOutput output,
                          cudaStream_t stream);
// experts_wgrad_touched.cu: what it does of forms other than kStored; of kStored touched rows alone as well.
void launch_touched_experts_wgrad(const LayerShape& shape, const void* hidden_states, const void* dy,
                                  DevicePairGradients pairs, DevicePairsByExpert sorted, WgradOutput output,
                                  cudaStream_t stream);

// experts_backward_dense_masked.cu: products with all experts, chunk by chunk. As above; `pairs.p` and
// `pairs.q` are rounded to storage as operands.
std::int64_t dense_masked_dgrad_workspace_bytes(const LayerShape& shape);
void launch_experts_dgrad_dense_masked(CublasLt& blas, const LayerShape& shape, const DgradInputs& inputs,
                                       const DeviceWeights& weights, DeviceRouting routing,
                                       DevicePairGradients pairs, void* workspace, bool adds, float* dx,
                                       cudaStream_t stream);
std::int64_t dense_masked_wgrad_workspace_bytes(const LayerShape& shape);
void launch_experts_wgrad_dense_masked(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                       const void* dy, DeviceRouting routing, DevicePairGradients pairs,
                                       void* workspace, WgradOutput output, cudaStream_t stream);

// router_norm.cu: log-softmax of rows and columns, in place on logits [L, Nr+Nc]; `lse` [2,L] or null.
void launch_log_softmax(const LayerShape& shape, float* logits, float* lse, cudaStream_t stream);

/// Batch norm of the logits over the batch's tokens.
struct DeviceNorm {
  double* mean = nullptr;      ///< [Nr+Nc]
  double* variance = nullptr;  ///< [Nr+Nc], biased
  double eps = 0;
};
/// Statistics, then logits [L, Nr+Nc] centred and scaled in place. `workspace`: column_sums_workspace_bytes.
void launch_router_norm(const LayerShape& shape, float* logits, DeviceNorm norm, void* workspace,
                        cudaStream_t stream);
/// gradient [L, Nr+Nc] of the normalised logits becomes that of those before. The normalised logits are
/// log_probs + lse.
void launch_router_norm_backward(const LayerShape& shape, DeviceLogProbs log_probs, const float* lse,
                                 DeviceNorm norm, const float* gradient, float* before, void* workspace,
                                 cudaStream_t stream);
/// sums [Nr+Nc] fp32 of the columns of values [L, Nr+Nc]; added to what is there where `adds`.
void launch_column_sums(const LayerShape& shape, const float* values, float* sums, void* workspace,
                        cudaStream_t stream, bool adds = false);
std::int64_t column_sums_workspace_bytes(const LayerShape& shape);

// router_select_backward.cu: logits' gradients [L, Nr+Nc] fp32 from those of the gates.
void launch_router_select_backward(const LayerShape& shape, DeviceRouting routing,
                                   const float* gate_gradients, DeviceLogProbs log_probs,
                                   float* logits_gradient, cudaStream_t stream);

// router_losses.cu: adds the auxiliary losses' gradients to the logits' gradients; losses [2] fp64: balance,
// z. loads [N]: pairs of every expert, read by the balance loss.
std::int64_t router_losses_workspace_bytes(const LayerShape& shape, const AuxiliaryLosses& losses);
void launch_router_losses(CublasLt& blas, const LayerShape& shape, const AuxiliaryLosses& weights,
                          DeviceLogProbs log_probs, const float* lse, const std::int32_t* loads,
                          float* logits_gradient, double* losses, void* workspace, cudaStream_t stream);

/// Where router_project_backward leaves what it makes.
struct RouterGradients {
  Dtype dtype = Dtype::kBF16;
  void* matrix = nullptr;  ///< [Nr+Nc, d]: rows, then columns
  bool adds = false;       ///< to what is there
};
// router_project_backward.cu: operands = logits_gradient rounded to storage; matrix = operands^T X;
// dx += operands router.
std::int64_t router_project_backward_workspace_bytes(const LayerShape& shape);
void launch_router_project_backward(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                    const DeviceWeights& weights, const float* logits_gradient,
                                    RouterGradients output, float* dx, void* workspace, cudaStream_t stream);

/// Gradients of the shared MLP.
struct SharedGradients {
  Dtype dtype = Dtype::kBF16;
  void* gate_up = nullptr;  ///< [2h, d]: gate rows, then up rows
  void* down = nullptr;     ///< [d, h]
  bool adds = false;        ///< to what is there
};
// shared_mlp_backward.cu: gate and up again, then the gradients; dx [L,d] fp32 is written.
std::int64_t shared_mlp_backward_workspace_bytes(const LayerShape& shape);
void launch_shared_mlp_backward(CublasLt& blas, const LayerShape& shape, const void* hidden_states,
                                const void* dy, const DeviceWeights& weights, SharedGradients output,
                                float* dx, void* workspace, cudaStream_t stream);

}  // namespace moescope::cuda
