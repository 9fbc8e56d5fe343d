#pragma once

#include <cstdint>
#include <string>

#include "capi/base/failure.hpp"
#include "capi/checks.hpp"
#include "capi/cuda/device.hpp"
#include "capi/cuda/pairs.hpp"
#include "capi/cuda/scratch.hpp"
#include "capi/gpu/gpu.hpp"
#include "kernels/contract/launch.hpp"

namespace moescope::capi::gpu {

/// Kernels load 16 bytes at a time.
inline void require_aligned(const char* name, const void* array) {
  constexpr std::uintptr_t kLoad = 16;
  if (reinterpret_cast<std::uintptr_t>(array) % kLoad != 0) {
    refuse(name, std::to_string(reinterpret_cast<std::uintptr_t>(array)),
           "must be aligned to 16 bytes on CUDA");
  }
}

/// An operation with its device current and its workspace laid out.
class Run {
 public:
  explicit Run(const Call& call) : call_(call), shape_(device_shape(call)), device_(call.execution) {
    Arena sizes;
    take_scratch(sizes, call, shape_, gpu(), scratch_);
    require_workspace(call.execution, sizes.used());
    Arena arena(call.execution.workspace, call.execution.workspace_bytes);
    take_scratch(arena, call, shape_, gpu(), scratch_);
  }

  const LayerShape& shape() const { return shape_; }
  const GpuTraits& gpu() const { return device_.traits(); }
  const Scratch& scratch() const { return scratch_; }
  cudaStream_t stream() const { return stream_of(call_.execution); }
  bool empty() const { return shape_.num_tokens == 0; }

  void pack(const void* row_logits, const void* col_logits) const {
    launch_pack_logits(shape_.num_tokens, shape_.grid_rows, shape_.grid_cols,
                       static_cast<const float*>(row_logits), static_cast<const float*>(col_logits),
                       scratch_.selection.logits, scratch_.selection.bad_logit, stream());
  }

  /// Packed logits to pairs in the interface's order. narrow_ids: null, or the ids once more as int32.
  void select(void* ids, bool wide, void* gates, void* scores, std::int32_t* narrow_ids,
              const PairsScratch& clears) const {
    const SelectionScratch& own = scratch_.selection;
    cuda::launch_router_select(
        shape_, own.logits, {own.selected, own.selected_gates}, own.bad_logit, own.workspace, stream(),
        call_.problem.log_softmax ? cuda::SelectMarginals::kLogSoftmax : cuda::SelectMarginals::kAsGiven);
    launch_order_pairs({.tokens = shape_.num_tokens,
                        .rows = shape_.grid_rows,
                        .cols = shape_.grid_cols,
                        .top_k = shape_.top_k,
                        .gate_mode = call_.problem.gate_mode,
                        .log_softmax = call_.problem.log_softmax,
                        .wide_ids = wide,
                        .logits = own.logits,
                        .selected = own.selected,
                        .ids = ids,
                        .gates = static_cast<float*>(gates),
                        .scores = static_cast<float*>(scores),
                        .narrow_ids = narrow_ids,
                        .sort_space = own.sort_space,
                        .cleared = clears.arrivals,
                        .cleared_count = clears.arrivals_count},
                       gpu(), stream());
  }

 protected:
  const Call& call_;
  LayerShape shape_;
  CurrentDevice device_;
  Scratch scratch_;
};

}  // namespace moescope::capi::gpu
