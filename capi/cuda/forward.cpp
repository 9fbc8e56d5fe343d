// The forward's operations of the interface as launches in order. Nothing is read back and nothing allocated.
#include <utility>

#include "capi/cuda/run.hpp"
#include "kernels/contract/gated_mlp.hpp"
#include "kernels/contract/given_pairs.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::capi::gpu {
namespace {

/// The forward's operations.
class ForwardRun : public Run {
 public:
  using Run::Run;

  /// Experts token by token, `addend` [L,d] added.
  void experts(const void* x, const void* w_in, const void* w_out, const std::int32_t* ids,
               const float* gates, const float* addend, void* y) const {
    cuda::DeviceWeights weights;
    weights.w_in = w_in;
    weights.w_out = w_out;
    // The launcher writes neither ids nor gates.
    const cuda::DeviceRouting routing{const_cast<std::int32_t*>(ids), const_cast<float*>(gates)};
    cuda::launch_experts_token_centric(shape_, x, weights, routing, scratch_.pairs.workspace,
                                       output(addend, y), stream());
  }

  /// To the caller's y, in its type.
  cuda::ExpertOutput output(const float* addend, void* y) const {
    const bool bf16 = shape_.dtype == Dtype::kBF16;
    return {.y = bf16 ? nullptr : static_cast<float*>(y), .addend = addend, .rounded = bf16 ? y : nullptr};
  }

  void mlp(const void* x, const void* gate, const void* up, const void* down, float* y,
           cudaStream_t stream) const {
    const MlpScratch& own = scratch_.mlp;
    cuda::launch_gated_mlp(blas_of(call_.execution, own.blas, own.blas_bytes), shape_, x,
                           {.gate = gate, .up = up, .down = down}, own.units, y, stream);
  }

  /// The layer's shared MLP, if it has one, on `stream`.
  void shared_mlp(const moescope_layer_inputs& inputs, cudaStream_t stream) const {
    if (scratch_.mlp.y != nullptr) {
      mlp(inputs.x, inputs.shared_gate, inputs.shared_up, inputs.shared_down, scratch_.mlp.y, stream);
    }
  }

  /// Packed logits to y by strips.
  void staircase(const moescope_layer_inputs& inputs, const ScheduleOptions& options, void* y) const {
    const StripsScratch& own = scratch_.strips;
    cuda::DeviceWeights weights;
    weights.w_in = inputs.w_in;
    weights.w_out = inputs.w_out;
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(own.strips.scratch, 0, static_cast<std::size_t>(own.zeroed_bytes), stream()));
    // The bound reads W and V, the selection computes: side by side, the selection's blocks first.
    const bool bounded = inputs.struct_bytes >= kBoundBytes && inputs.expert_bound != nullptr;
    const float* const bound = bounded ? inputs.expert_bound : own.bound;
    const Beside& beside = Beside::of_current_device(call_.execution);
    beside.fork(stream());
    cuda::launch_router_select_strips(shape_, options.strip_rule, scratch_.selection.logits, own.strips,
                                      scratch_.selection.bad_logit, stream());
    if (!bounded) {
      cuda::launch_expert_bound(shape_, weights, own.bound, beside.stream());
    }
    cuda::launch_schedule_strips(shape_, options.strip_rule, options.tile_tokens, own.strips, stream());
    if (std::int32_t* const counts = counts_of(inputs); counts != nullptr) {
      MOESCOPE_CUDA_CHECK(
          cudaMemcpyAsync(counts, own.strips.counts, kCounts, cudaMemcpyDeviceToDevice, stream()));
    }
    shared_mlp(inputs, beside.stream());
    beside.join(stream());
    cuda::launch_staircase_prepare(shape_, inputs.x, bound, own.strips, own.sums, stream());
    cuda::launch_experts_staircase(shape_, inputs.x, weights, own.strips, own.sums, stream());
    cuda::launch_round_output(shape_, own.sums, scratch_.mlp.y, y, stream());
  }

  /// Of a layer that has no strips.
  void clear_counts(const moescope_layer_inputs& inputs) const {
    if (std::int32_t* const counts = counts_of(inputs); counts != nullptr) {
      MOESCOPE_CUDA_CHECK(cudaMemsetAsync(counts, 0, kCounts, stream()));
    }
  }

  /// Packed logits to y token by token, the pairs to `ids` and `gates`. Where those are null nobody sees
  /// their order.
  void token_centric(const moescope_layer_inputs& inputs, void* ids, void* gates, void* y) const {
    const PairsScratch& pairs = scratch_.pairs;
    const bool listed = ids != nullptr;
    const bool ordered = listed || !any_order_will_do();
    const bool wide = listed && call_.problem.wide_ids;
    const bool beside = scratch_.mlp.y != nullptr;
    if (beside) {
      Beside::of_current_device(call_.execution).fork(stream());
    }
    const std::int32_t* taken_ids = listed && !wide ? static_cast<const std::int32_t*>(ids) : pairs.ids;
    const float* taken_gates = static_cast<const float*>(listed ? gates : pairs.gates);
    if (ordered) {
      select(listed ? ids : pairs.ids, wide, listed ? gates : pairs.gates, nullptr,
             wide ? pairs.ids : nullptr, pairs);
    } else {
      select_in_any_order();
      taken_ids = scratch_.selection.selected;
      taken_gates = scratch_.selection.selected_gates;
    }
    if (beside) {
      const Beside& side = Beside::of_current_device(call_.execution);
      shared_mlp(inputs, side.stream());
      side.join(stream());
    }
    experts(inputs.x, inputs.w_in, inputs.w_out, taken_ids, taken_gates, scratch_.mlp.y, y);
  }

 private:
  static constexpr std::size_t kCounts = 2 * sizeof(std::int32_t);

  static std::int32_t* counts_of(const moescope_layer_inputs& inputs) {
    return inputs.struct_bytes >= kCountsBytes ? inputs.strip_counts : nullptr;
  }
};

}  // namespace

bool built() { return true; }

std::size_t workspace_bytes(const Call& call) {
  std::size_t bytes = 0;
  launching([&] {
    const LayerShape shape = device_shape(call);
    const CurrentDevice device(call.execution);
    Arena arena;
    Scratch scratch;
    take_scratch(arena, call, shape, device.traits(), scratch);
    bytes = arena.used();
  });
  return bytes;
}

void select_forward(const Call& call, const void* row_logits, const void* col_logits, void* ids, void* gates,
                    void* scores) {
  launching([&] {
    const ForwardRun run(call);
    if (!run.empty()) {
      run.pack(row_logits, col_logits, {});
      run.select(ids, call.problem.wide_ids, gates, scores, nullptr, {});
    }
  });
}

void experts_forward(const Call& call, const void* x, const void* w_in, const void* w_out, const void* ids,
                     const void* gates, void* y) {
  for (const auto& [name, array] : {std::pair("x", x), std::pair("w_in", w_in), std::pair("w_out", w_out),
                                    std::pair("y", static_cast<const void*>(y))}) {
    require_aligned(name, array);
  }
  launching([&] {
    const ForwardRun run(call);
    if (run.empty()) {
      return;
    }
    const bool wide = call.problem.wide_ids;
    cuda::DeviceWeights weights;
    weights.w_in = w_in;
    weights.w_out = w_out;
    cuda::launch_experts_given_pairs(run.shape(), x, weights,
                                     {.ids = wide ? nullptr : static_cast<const std::int32_t*>(ids),
                                      .wide_ids = wide ? static_cast<const std::int64_t*>(ids) : nullptr,
                                      .gates = static_cast<const float*>(gates)},
                                     run.scratch().pairs.workspace, run.output(nullptr, y), run.stream());
  });
}

void mlp_forward(const Call& call, const void* x, const void* gate, const void* up, const void* down,
                 void* y) {
  require_aligned("y", y);
  launching([&] {
    const ForwardRun run(call);
    if (run.empty()) {
      return;
    }
    float* const sums = run.scratch().mlp.y;
    run.mlp(x, gate, up, down, sums != nullptr ? sums : static_cast<float*>(y), run.stream());
    if (sums != nullptr) {
      cuda::launch_round_output(run.shape(), sums, nullptr, y, run.stream());
    }
  });
}

void layer_forward(const Call& call, const moescope_layer_inputs& inputs, void* y, void* ids, void* gates) {
  for (const auto& [name, array] :
       {std::pair("inputs.x", inputs.x), std::pair("inputs.w_in", inputs.w_in),
        std::pair("inputs.w_out", inputs.w_out), std::pair("y", static_cast<const void*>(y))}) {
    require_aligned(name, array);
  }
  launching([&] {
    const ForwardRun run(call);
    if (run.empty()) {
      return;
    }
    const bool lists_pairs = ids != nullptr;
    const ScheduleOptions options = layer_schedule(call, run.shape(), run.gpu(), lists_pairs);
    run.pack(inputs.row_logits, inputs.col_logits, run.scratch().pairs);
    if (options.kind != ScheduleKind::kStaircase) {
      run.clear_counts(inputs);
      run.token_centric(inputs, ids, gates, y);
      return;
    }
    run.staircase(inputs, options, y);
    if (lists_pairs) {
      run.select(ids, call.problem.wide_ids, gates, nullptr, nullptr, {});
    }
  });
}

}  // namespace moescope::capi::gpu
