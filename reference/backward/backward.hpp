#pragma once

#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/training.hpp"
#include "core/schedule/schedule.hpp"

/// Every stage of the backward on the CPU, one file per stage; core/layer/training.hpp has the symbols and
/// tests/reference/oracle the formulas' proof. Host memory, fp32 accumulation from operands in storage dtype,
/// OpenMP. All are deterministic: bit-identical whatever the number of threads, because every output element
/// is summed by one thread in the schedule's order.
namespace moescope::reference {

/// What experts_dgrad leaves.
struct ExpertsDgrad {
  std::vector<float> gates;  ///< [M] gradients of the gates, CSR order
  /// [M] operands of experts_wgrad: gate * act(z), and the gradient of z; rounded to storage where
  /// rounds_scores().
  std::vector<float> p;
  std::vector<float> q;
};

/// z = x . w_in of every pair as SaveMode::kScores keeps it: CSR order, rounded to storage.
std::vector<float> saved_scores(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule);

/// Data gradients: token by token in the schedule's order, as the forward goes. `saved`: z of every pair
/// (saved_scores()), or empty: computed again. Adds its part to `dx` [L,d] fp32.
ExpertsDgrad experts_dgrad(const LayerInputs& inputs, const HostTensor& dy, const Routing& routing,
                           const Schedule& schedule, std::span<const float> saved, HostTensor& dx);

/// Weight gradients [N,d] fp32: dW_i = sum of q x, dV_i = sum of p dy over the expert's pairs, zero where
/// there is none. One owner per expert, who adds item by item in the schedule's order (row strips before
/// column strips), tokens ascending: no atomics.
struct ExpertsWgrad {
  HostTensor w_in;
  HostTensor w_out;
};
ExpertsWgrad experts_wgrad(const LayerInputs& inputs, const HostTensor& dy, const Routing& routing,
                           const Schedule& schedule, std::span<const float> p, std::span<const float> q);

/// Batch norm of the router's logits over the batch's tokens, in place, without affine part.
struct BatchStatistics {
  std::vector<double> mean;
  std::vector<double> variance;  ///< biased
};
BatchStatistics normalise_logits(HostTensor& logits, double eps);
/// Its backward, in place: `gradient` of the normalised logits becomes that of those before.
void normalise_logits_backward(HostTensor& gradient, const HostTensor& normalised,
                               const BatchStatistics& statistics, double eps);
/// Running averages after one more batch (BatchNorm::momentum).
RunningNorm updated_norm(const RunningNorm& before, const BatchStatistics& batch, std::int64_t num_tokens,
                         double momentum);

/// Log-softmax of every row, in place: what SaveMode::kLogProbs keeps.
void log_softmax_rows(HostTensor& logits);

/// From the gates' gradients to those of the logits, with the auxiliary losses. `log_p`: log-probabilities of
/// rows and columns; `lse`: log-sum-exp of either, [L], read by the z-loss alone.
struct RouterSelectBackward {
  RouterLogits logits;  ///< [L,Nr], [L,Nc] fp32
  double balance_loss = 0;
  double z_loss = 0;
};
RouterSelectBackward router_select_backward(const LayerShape& shape, const RouterLogits& log_p,
                                            const Routing& routing, std::span<const float> gate_gradients,
                                            const AuxiliaryLosses& losses, std::span<const float> row_lse,
                                            std::span<const float> col_lse);

/// From the logits' gradients (before a batch norm) to the router's matrices and biases; adds its part to
/// `dx` [L,d] fp32. The gradients are rounded to storage first, as operands of the products.
struct RouterProjectBackward {
  HostTensor row;               ///< [Nr,d] fp32
  HostTensor col;               ///< [Nc,d] fp32
  std::vector<float> row_bias;  ///< [Nr]
  std::vector<float> col_bias;  ///< [Nc]
};
RouterProjectBackward router_project_backward(const LayerInputs& inputs, const RouterLogits& gradients,
                                              HostTensor& dx);

/// The dense branch: its three matrices, fp32; adds its part to `dx`. Gate and up are computed again; what is
/// an operand of a product is rounded to storage.
SharedMlpWeights gated_mlp_backward(const HostTensor& x, const HostTensor& dy,
                                    const SharedMlpWeights& weights, Activation activation, HostTensor& dx);

}  // namespace moescope::reference
