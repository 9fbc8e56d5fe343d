#pragma once

#include <vector>

#include "core/layer/training.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

/// Parts of training_stream(), one file per kind of kernel. Not for use outside
/// profiler/simulator/streams/access_*.cpp.
namespace moescope::detail {

/// Where the backward's own tensors lie, behind those of the forward (kernels/training/): one after another
/// on 4 KiB borders.
struct BackwardMap {
  std::uint64_t dy = 0;               ///< [L, d]
  std::uint64_t log_probs = 0;        ///< [L, Nr + Nc] fp32, of lists: where the logits were
  std::uint64_t gate_gradients = 0;   ///< [M] fp32, of lists
  std::uint64_t p = 0;                ///< [M] fp32; of strips [entries, pitch] bf16
  std::uint64_t q = 0;                ///< likewise
  std::uint64_t z = 0;                ///< [M] fp32; of strips bf16 by tile
  std::uint64_t h = 0;                ///< of strips [entries, pitch] bf16
  std::uint64_t h_sums = 0;           ///< of strips [2, entries, segments] fp32: of h, of gates
  std::uint64_t sorted_offsets = 0;   ///< [N + 1] 4 bytes, of pairs
  std::uint64_t sorted_pairs = 0;     ///< [M] 4 bytes, of pairs
  std::uint64_t touched = 0;          ///< [N + 1] 4 bytes, of lists
  std::uint64_t entry_tokens = 0;     ///< of strips [entries] 4 bytes, ascending in a strip
  std::uint64_t entries = 0;          ///< of strips [L, max_strips_of_token] 4 bytes
  std::uint64_t sums = 0;             ///< of strips [L, d] scaled
  std::uint64_t exponents = 0;        ///< of strips [L] 4 bytes
  std::uint64_t dx_sums = 0;          ///< [L, d] fp32
  std::uint64_t dx = 0;               ///< [L, d] storage
  std::uint64_t w_in_gradient = 0;    ///< [N, d]
  std::uint64_t w_out_gradient = 0;   ///< [N, d]
  std::uint64_t logits_gradient = 0;  ///< [L, Nr + Nc] fp32
  std::uint64_t router_gradient = 0;  ///< [Nr + Nc, d]
  std::uint64_t shared_gradient = 0;  ///< gate and up [2 h, d], down [d, h]
  std::uint64_t scratch = 0;          ///< stages take turns in it
  std::int64_t sum_bytes = 4;         ///< of a value of `sums`
  std::int64_t pitch_bytes = 0;       ///< of a row of p, q and h of strips
  std::int64_t segments = 1;          ///< parts that the longer kind of strip is taken in
};

struct BackwardContext : StreamContext {
  TrainingOptions training;
  BackwardMap at = {};

  /// Lays out the tensors. Throws InvalidArgument for what has no stream.
  BackwardContext(StreamContext forward, const TrainingOptions& step);

  bool saves_scores() const { return training.save == SaveMode::kScores; }
  /// The shared MLP's part is in dX's sums before the experts add theirs.
  bool dx_holds() const { return shape.shared_size > 0; }
  std::int64_t gradient_bytes() const { return dtype_bytes(training.gradient_dtype(shape.dtype)); }
  std::int64_t gradient_row_bytes() const { return shape.hidden_size * gradient_bytes(); }
  std::int64_t sides() const { return shape.grid_rows + shape.grid_cols; }
  /// Gates exp(score): the logits' gradients read log-probabilities.
  bool reads_log_probs() const { return shape.gate_mode != GateMode::kSoftmax; }
};

inline std::uint64_t offset_by(std::uint64_t base, std::int64_t bytes) {
  return base + static_cast<std::uint64_t>(bytes);
}

// access_backward_pairs.cpp: token_centric and expert_centric, token by token.
void add_pairs_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);
/// The logits' gradients from lists of pairs, dense_masked included.
void add_lists_select_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context);

// access_backward_sorted.cpp: the pairs in the order of their experts, and the owners that go by it.
void add_pairs_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);
/// The list of experts that have pairs, from what says how many each has.
void add_touched(std::vector<KernelLaunch>& launches, const BackwardContext& context, std::uint64_t counts);

// access_backward_dense.cpp
void add_dense_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);
void add_dense_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);

// access_backward_strips.cpp
/// Tokens of every strip in order: the end of the schedule that a backward computes again.
void add_strips_order(std::vector<KernelLaunch>& launches, const BackwardContext& context);
void add_strips_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);
void add_strips_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context);
void add_strips_select_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context);

}  // namespace moescope::detail
