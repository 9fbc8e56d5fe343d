#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/schedule/schedule.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/systems/system.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/ffn_launch.hpp"

/// FFN experts on the GPU in every order of work: what they hold, and their stages schedule and experts.
namespace moescope::cuda {

/// What runs, and what it needs: arithmetic, no device needed.
struct FfnForm {
  SystemShape shape;
  ScheduleKind kind = ScheduleKind::kExpertCentric;
  TokenRule tokens = {};  ///< of expert_centric

  bool grouped() const { return kind != ScheduleKind::kTokenCentric; }
  /// Whether the order of work follows from the routing, in a stage of its own.
  bool scheduled() const { return kind == ScheduleKind::kExpertCentric; }
  bool ruled() const { return scheduled() && !tokens.every(); }
  bool adds() const { return ruled() && needs_probabilities(tokens); }
  std::int64_t pairs() const { return shape.num_tokens * shape.top_k; }
  /// Of hidden activations, at most; with grouped products also of results.
  std::int64_t rows() const;
  /// In the working buffer: hidden activations, then results.
  std::int64_t results_offset() const;
  std::int64_t working_bytes() const;
  /// Kept from the schedule for the experts, and scratch while it is made.
  std::int64_t permutation_bytes() const;
  std::int64_t scratch_bytes() const;
};

/// Owner of the order of work on the device. Bit-repeatable.
class FfnExperts {
 public:
  FfnExperts(const FfnForm& form, cudaStream_t stream);

  /// Stage schedule, of a form that has one. `logits` [L, N] of the router; read where the rule adds pairs.
  void enqueue_schedule(DeviceRouting routing, const float* logits, cudaStream_t stream);
  /// Stage experts. `working`: FfnForm::working_bytes() of it.
  void enqueue_experts(const void* hidden_states, const FfnMatrices& weights, DeviceRouting routing,
                       void* working, const ExpertOutput& output, cudaStream_t stream);
  /// Of a ruled form: which pairs the last schedule left of `chosen`, the router's. Blocks.
  TokenAssignment assignment(const Routing& chosen, cudaStream_t stream) const;

 private:
  FfnPermutation permutation() const {
    return {row_tokens_.get(), pair_rows_.get(), tiles_.get(), num_tiles_.get()};
  }
  FfnAllRows all_rows() const {
    return {row_tokens_.get(), pair_rows_.get(), tiles_.get(), num_tiles_.get()};
  }
  FfnRuledRows ruled_rows() const {
    return {expert_rows_.get(), expert_pairs_.get(), row_tokens_.get(), row_gates_.get(),
            pair_rows_.get(),   token_rows_.get(),   tiles_.get(),      num_tiles_.get()};
  }

  FfnForm form_;
  DeviceBuffer<std::int32_t> row_tokens_;
  DeviceBuffer<std::int32_t> pair_rows_;
  DeviceBuffer<GroupedTile> tiles_;
  DeviceBuffer<std::int32_t> num_tiles_;
  DeviceBuffer<float> row_gates_;           ///< from here on of rules
  DeviceBuffer<std::int32_t> expert_rows_;  ///< [N + 1]
  DeviceBuffer<std::int32_t> expert_pairs_;
  DeviceBuffer<std::int32_t> token_rows_;  ///< of rules that add pairs, which have no pair_rows_
  Bytes scratch_;
};

}  // namespace moescope::cuda
