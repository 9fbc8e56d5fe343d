#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/optimizer.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/stage.hpp"
#include "core/layer/tensor.hpp"

/// What a training step of a layer is told and what it gives back. Symbols, for token t with its expert i:
/// z = x . w_in[i], a = act(z), p = gate * a, u = dy . w_out[i]; then the gate's gradient is u a,
/// q = u gate act'(z) is the one of z, and h = p u the one of the score behind a probability gate.
namespace moescope {

/// Inverse of to_string; throws InvalidArgument("direction", ...).
Direction parse_direction(std::string_view text);

/// What the forward keeps for the backward, beside its inputs; the rest is computed again.
enum class SaveMode : std::uint8_t {
  kMinimal,   ///< three numbers a token (threshold, tie limit, gates' shift): logits and selection again
  kLogProbs,  ///< log-probabilities of rows and columns, fp32: no logits again, whatever K
  kScores,    ///< these, and z in storage dtype: no product x . w_in again
};
std::string_view to_string(SaveMode mode);
/// Inverse; throws InvalidArgument("save", ...).
SaveMode parse_save_mode(std::string_view text);

/// What becomes of the memory that parameters' gradients are to be in.
enum class GradientForm : std::uint8_t {
  kStored,   ///< written whole; dW and dV are zero where no token went
  kTouched,  ///< the same, but of dW and dV only the touched experts' rows mean anything
  kAdded,    ///< added to what is there; rows of experts without tokens stay as they are
};
std::string_view to_string(GradientForm form);
/// Inverse; throws InvalidArgument("gradients", ...).
GradientForm parse_gradient_form(std::string_view text);

/// Losses on the router's factors, to be added to the one that dy comes from; 0 leaves one out. With
/// r_t = softmax of token t's row logits, c_t of its column logits, and f_ij the fraction of the batch's
/// pairs that expert (i, j) has (a constant: selection has no gradient):
struct AuxiliaryLosses {
  double balance = 0;  ///< times N / L * sum over t of r_t^T F c_t, F = f as [Nr,Nc]: 1 when all is even
  double z = 0;        ///< times 1 / L * sum over t of (logsumexp of rows + logsumexp of columns)^2

  bool any() const { return balance != 0 || z != 0; }
};

/// Batch norm without affine part between the router's matrices and its softmax: logits of one column are
/// centred and scaled over the batch's tokens (biased variance), as the published module trains.
struct BatchNorm {
  double eps = 1e-5;
  double momentum = 0.1;  ///< running = (1 - momentum) running + momentum batch, the variance unbiased
};

/// Running averages of one side of the router, which inference folds into its matrix.
struct RunningNorm {
  std::vector<double> mean;
  std::vector<double> variance;
};

struct TrainingOptions {
  SaveMode save = SaveMode::kLogProbs;
  AuxiliaryLosses losses = {};
  /// The router's biases must be empty: a batch norm takes them out.
  std::optional<BatchNorm> batch_norm = std::nullopt;
  std::optional<Dtype> gradients = std::nullopt;  ///< dtype of parameters' gradients; the layer's by default
  GradientForm form = GradientForm::kStored;
  /// A step on W and V from dW and dV, the backward's last stage. The backward itself goes on reading the W
  /// and V that it was given, so that it can be run again: the step's result is a copy.
  OptimizerForm optimizer = OptimizerForm::kNone;
  AdamWOptions adamw = {};

  Dtype gradient_dtype(Dtype storage) const { return gradients.value_or(storage); }
};

/// Throws InvalidArgument for options of AdamW, for an optimizer that is to read rows of gradients that the
/// backward does not make, or sums over several backwards.
void validate_optimizer(const TrainingOptions& options);

/// Throws InvalidArgument: losses that are negative or not finite, auxiliary losses or batch norm without a
/// router, a batch norm of one token or behind biases, a dy that is not [L,d] in the layer's dtype, what
/// validate_optimizer() refuses.
void validate_training(const LayerInputs& inputs, const HostTensor& dy, const TrainingOptions& options);

/// Gradients of a layer; what it does not have is empty. Those of parameters in the dtype asked for.
struct LayerGradients {
  HostTensor hidden_states;                   ///< dX [L,d] in storage dtype
  HostTensor w_in;                            ///< dW [N,d], as GradientForm says
  HostTensor w_out;                           ///< dV [N,d]
  std::vector<std::int32_t> touched_experts;  ///< ascending: the rows of dW and dV that tokens went to
  std::vector<float> gates;                   ///< [M] of the routing's pairs, CSR order
  RouterLogits logits;          ///< [L,Nr], [L,Nc] fp32: of what the softmax reads, auxiliary losses included
  HostTensor router_row;        ///< [Nr,d]
  HostTensor router_col;        ///< [Nc,d]
  std::vector<float> row_bias;  ///< [Nr]; empty without biases
  std::vector<float> col_bias;
  std::optional<SharedMlpWeights> shared;
  double balance_loss = 0;  ///< weighted
  double z_loss = 0;
};

/// Experts with at least one pair, ascending.
std::vector<std::int32_t> touched_experts(const Routing& routing);

}  // namespace moescope
