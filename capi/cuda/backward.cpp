// The backward's operations of the interface as launches in order. Nothing is read back and nothing
// allocated.
#include <string>
#include <utility>

#include "capi/cuda/run.hpp"
#include "capi/cuda/select_backward.hpp"
#include "capi/cuda/strip_limit.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::capi::gpu {
namespace {

/// Gradients of an operation's tables of experts, made together or not at all.
struct Tables {
  void* w_in = nullptr;
  void* w_out = nullptr;

  bool wanted() const { return w_in != nullptr; }
  void require_both() const {
    if ((w_in == nullptr) != (w_out == nullptr)) {
      throw Failure(MOESCOPE_ERROR_UNSUPPORTED,
                    std::string(w_in == nullptr ? "w_in" : "w_out") +
                        ": its gradient is null, and on CUDA those of w_in and w_out "
                        "are made together");
    }
  }
};

/// Where the lists of pairs are.
struct Pairs {
  const std::int32_t* ids = nullptr;
  const float* gates = nullptr;

  cuda::DeviceRouting routing() const {
    return {const_cast<std::int32_t*>(ids), const_cast<float*>(gates)};  // the launchers write neither
  }
};

void copy(void* to, const void* from, std::int64_t bytes, cudaStream_t stream) {
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream));
}

class BackwardRun : public Run {
 public:
  using Run::Run;

  float* dx() const { return scratch_.dx; }

  std::int64_t matrix_bytes(std::int64_t rows) const {
    return rows * shape_.hidden_size * dtype_bytes(shape_.dtype);
  }

  /// Zeros where no token adds to an array; null: not wanted.
  void clear(void* array, std::int64_t rows) const {
    if (array != nullptr) {
      MOESCOPE_CUDA_CHECK(cudaMemsetAsync(array, 0, static_cast<std::size_t>(matrix_bytes(rows)), stream()));
    }
  }

  /// dx() is written. Matrices that lie one behind the other are taken
  /// as they are.
  void mlp(const void* x, const void* gate, const void* up, const void* down, const void* dy,
           const MlpGradients& to) const {
    const MlpBackwardScratch& own = scratch_.mlp_backward;
    const std::int64_t half = matrix_bytes(shape_.shared_size);
    const auto adjacent = [half](const void* first, const void* second) {
      return first != nullptr && static_cast<const std::byte*>(first) + half == second;
    };
    cuda::DeviceWeights weights;
    weights.shared_down = down;
    weights.shared_gate_up = gate;
    if (!adjacent(gate, up)) {
      copy(own.gate_up, gate, half, stream());
      copy(own.gate_up + half, up, half, stream());
      weights.shared_gate_up = own.gate_up;
    }
    const bool in_place = adjacent(to.gate, to.up);
    cuda::launch_shared_mlp_backward(blas_of(call_.execution, own.blas, own.blas_bytes), shape_, x, dy,
                                     weights,
                                     {.dtype = shape_.dtype,
                                      .gate_up = in_place ? to.gate : own.gate_up_gradient,
                                      .down = to.down != nullptr ? to.down : own.down_gradient},
                                     dx(), own.units, stream());
    if (!in_place && to.gate != nullptr) {
      copy(to.gate, own.gate_up_gradient, half, stream());
    }
    if (!in_place && to.up != nullptr) {
      copy(to.up, own.gate_up_gradient + half, half, stream());
    }
  }

  /// The caller's pairs as the kernels take them.
  Pairs take(const void* ids, const void* gates) const {
    const PairsBackwardScratch& own = scratch_.pairs_backward;
    launch_take_pairs({.pairs = shape_.num_pairs(),
                       .experts = shape_.num_experts(),
                       .wide_ids = call_.problem.wide_ids,
                       .ids = ids,
                       .gates = static_cast<const float*>(gates),
                       .narrow_ids = own.ids,
                       .checked_gates = own.gates,
                       .cleared = own.arrivals,
                       .cleared_count = own.arrivals_count},
                      stream());
    return {own.ids, own.gates};
  }

  /// What pack() has to clear for experts().
  PairsScratch arrivals() const {
    PairsScratch clears;
    clears.arrivals = scratch_.pairs_backward.arrivals;
    clears.arrivals_count = scratch_.pairs_backward.arrivals_count;
    return clears;
  }

  /// Those of packed logits.
  Pairs select_again() const {
    if (any_order_will_do()) {
      select_in_any_order();
      return {scratch_.selection.selected, scratch_.selection.selected_gates};
    }
    const PairsBackwardScratch& own = scratch_.pairs_backward;
    select(own.ids, false, own.gates, nullptr, nullptr, {});
    return {own.ids, own.gates};
  }

  /// dx() written or, where `adds`, added to; the sort of the pairs runs beside the data gradients.
  void experts(const void* x, const void* w_in, const void* w_out, Pairs pairs, const void* dy, bool adds,
               float* gates_gradient, Tables tables) const {
    const PairsBackwardScratch& own = scratch_.pairs_backward;
    cuda::DeviceWeights weights;
    weights.w_in = w_in;
    weights.w_out = w_out;
    cuda::DevicePairGradients gradients = own.gradients;
    gradients.gates = gates_gradient != nullptr ? gates_gradient : gradients.gates;
    const Beside& beside = Beside::of_current_device(call_.execution);
    if (tables.wanted()) {
      beside.fork(stream());
      cuda::launch_pairs_by_expert(shape_, pairs.routing(), own.sorted, own.sort_space, beside.stream());
    }
    cuda::launch_experts_dgrad(shape_, {.hidden_states = x, .dy = dy}, weights, pairs.routing(), gradients,
                               own.workspace, adds, dx(), stream());
    if (tables.wanted()) {
      beside.join(stream());
      cuda::launch_experts_wgrad(shape_, x, dy, gradients, own.sorted,
                                 {.dtype = shape_.dtype, .w_in = tables.w_in, .w_out = tables.w_out},
                                 stream());
    }
  }

  /// Gradients of the gates to those of the logits. `wide`: ids are int64.
  void select_backward(const void* row_logits, const void* col_logits, const void* ids, bool wide,
                       const void* gates_gradient, void* row_gradient, void* col_gradient) const {
    launch_select_backward({.tokens = shape_.num_tokens,
                            .rows = shape_.grid_rows,
                            .cols = shape_.grid_cols,
                            .top_k = shape_.top_k,
                            .gate_mode = call_.problem.gate_mode,
                            .log_softmax = call_.problem.log_softmax,
                            .wide_ids = wide,
                            .row_logits = static_cast<const float*>(row_logits),
                            .col_logits = static_cast<const float*>(col_logits),
                            .ids = ids,
                            .gates_gradient = static_cast<const float*>(gates_gradient),
                            .row_gradient = static_cast<float*>(row_gradient),
                            .col_gradient = static_cast<float*>(col_gradient),
                            .sums = scratch_.pairs_backward.side_sums},
                           gpu(), stream());
  }

  /// The experts' backward straight from packed logits; dx() as experts() leaves it.
  void strips(const moescope_layer_inputs& inputs, const ScheduleOptions& options, const void* dy, bool adds,
              const moescope_layer_gradients& to) const {
    const StripsScratch& held = scratch_.strips;
    const StripsBackwardScratch& own = scratch_.strips_backward;
    const StripRule rule = options.strip_rule;
    cuda::DeviceWeights weights;
    weights.w_in = inputs.w_in;
    weights.w_out = inputs.w_out;
    cuda::DeviceWeights exchanged = weights;
    std::swap(exchanged.w_in, exchanged.w_out);
    cuda::StaircaseOutput sums = held.sums;
    sums.log_scales = nullptr;
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(held.strips.scratch, 0, static_cast<std::size_t>(held.zeroed_bytes), stream()));
    const Beside& beside = Beside::of_current_device(call_.execution);
    beside.fork(stream());
    cuda::launch_router_select_strips(shape_, rule, scratch_.selection.logits, held.strips,
                                      scratch_.selection.bad_logit, stream());
    cuda::launch_expert_bound(shape_, exchanged, held.bound, beside.stream());
    cuda::launch_schedule_strips(shape_, rule, options.tile_tokens, held.strips, stream());
    cuda::launch_strips_order(shape_, rule, held.strips, own.order, stream());
    if (own.exceeded != nullptr) {
      launch_limit_strips(shape_, held.strips, own.pairs.layout.entries, own.pairs.layout.tiles, own.exceeded,
                          stream());
    }
    beside.join(stream());
    const cuda::DeviceStrips ordered = own.order.apply(held.strips);
    cuda::launch_strips_backward_prepare(shape_, dy, held.bound, ordered, own.pairs, sums, stream());
    cuda::launch_strips_scores(shape_, inputs.x, weights, ordered, own.pairs, stream());
    cuda::launch_strips_dgrad(shape_, dy, weights, ordered, own.pairs, sums, stream());
    cuda::launch_strips_finish(shape_, sums, adds, dx(), stream());
    poison(dx(), shape_.num_tokens * shape_.hidden_size);
    if (to.w_in != nullptr) {
      cuda::launch_strips_wgrad(shape_, rule, inputs.x, dy, ordered, own.pairs,
                                {.dtype = shape_.dtype, .w_in = to.w_in, .w_out = to.w_out}, stream());
    }
    if (to.row_logits != nullptr || to.col_logits != nullptr) {
      cuda::launch_strips_router_select_backward(shape_, rule, ordered, own.order, own.pairs,
                                                 own.logits_gradient, own.workspace, stream());
      poison(own.logits_gradient, shape_.num_tokens * (shape_.grid_rows + shape_.grid_cols));
      unpack(to.row_logits, shape_.grid_rows, 0);
      unpack(to.col_logits, shape_.grid_cols, shape_.grid_rows);
    }
  }

  /// dx() to the caller's x_gradient, if there is one.
  void round(void* x_gradient) const {
    if (x_gradient != nullptr) {
      cuda::launch_round_output(shape_, dx(), nullptr, x_gradient, stream());
    }
  }

 private:
  void poison(float* values, std::int64_t count) const {
    if (const std::int32_t* const exceeded = scratch_.strips_backward.exceeded; exceeded != nullptr) {
      launch_poison(exceeded, values, count, stream());
    }
  }

  /// One side of the logits' gradients [L, Nr+Nc].
  void unpack(void* side, std::int64_t width, std::int64_t from) const {
    if (side == nullptr) {
      return;
    }
    constexpr std::size_t kFloat = sizeof(float);
    const auto bytes = static_cast<std::size_t>(width) * kFloat;
    const auto pitch = static_cast<std::size_t>(shape_.grid_rows + shape_.grid_cols) * kFloat;
    MOESCOPE_CUDA_CHECK(cudaMemcpy2DAsync(side, bytes, scratch_.strips_backward.logits_gradient + from, pitch,
                                          bytes, static_cast<std::size_t>(shape_.num_tokens),
                                          cudaMemcpyDeviceToDevice, stream()));
  }
};

void require_all_aligned(std::initializer_list<std::pair<const char*, const void*>> arrays) {
  for (const auto& [name, array] : arrays) {
    require_aligned(name, array);
  }
}

}  // namespace

void select_backward(const Call& call, const void* row_logits, const void* col_logits, const void* ids,
                     const void* gates_gradient, void* row_gradient, void* col_gradient) {
  launching([&] {
    const BackwardRun run(call);
    if (!run.empty()) {
      run.select_backward(row_logits, col_logits, ids, call.problem.wide_ids, gates_gradient, row_gradient,
                          col_gradient);
    }
  });
}

void experts_backward(const Call& call, const void* x, const void* w_in, const void* w_out, const void* ids,
                      const void* gates, const void* y_gradient, const ExpertsGradients& to) {
  const Tables tables{to.w_in, to.w_out};
  tables.require_both();
  require_all_aligned({{"x", x},
                       {"w_in", w_in},
                       {"w_out", w_out},
                       {"y_gradient", y_gradient},
                       {"x_gradient", to.x},
                       {"w_in_gradient", to.w_in},
                       {"w_out_gradient", to.w_out}});
  launching([&] {
    const BackwardRun run(call);
    if (run.empty()) {
      run.clear(to.w_in, run.shape().num_experts());
      run.clear(to.w_out, run.shape().num_experts());
      return;
    }
    run.experts(x, w_in, w_out, run.take(ids, gates), y_gradient, false, static_cast<float*>(to.gates),
                tables);
    run.round(to.x);
  });
}

void mlp_backward(const Call& call, const void* x, const void* gate, const void* up, const void* down,
                  const void* y_gradient, const MlpGradients& to) {
  require_all_aligned({{"x", x}, {"y_gradient", y_gradient}, {"x_gradient", to.x}});
  launching([&] {
    const BackwardRun run(call);
    if (run.empty()) {
      for (void* const matrix : {to.gate, to.up, to.down}) {
        run.clear(matrix, run.shape().shared_size);
      }
      return;
    }
    run.mlp(x, gate, up, down, y_gradient, to);
    run.round(to.x);
  });
}

void layer_backward(const Call& call, const moescope_layer_inputs& inputs, const void* ids, const void* gates,
                    const void* y_gradient, const moescope_layer_gradients& to) {
  const Tables tables{to.w_in, to.w_out};
  tables.require_both();
  require_all_aligned({{"inputs.x", inputs.x},
                       {"inputs.w_in", inputs.w_in},
                       {"inputs.w_out", inputs.w_out},
                       {"y_gradient", y_gradient},
                       {"gradients.x", to.x},
                       {"gradients.w_in", to.w_in},
                       {"gradients.w_out", to.w_out}});
  launching([&] {
    const BackwardRun run(call);
    const LayerShape& shape = run.shape();
    if (run.empty()) {
      run.clear(to.w_in, shape.num_experts());
      run.clear(to.w_out, shape.num_experts());
      for (void* const matrix : {to.shared_gate, to.shared_up, to.shared_down}) {
        run.clear(matrix, shape.shared_size);
      }
      return;
    }
    const bool shared = shape.shared_size > 0 && (to.x != nullptr || to.shared_gate != nullptr ||
                                                  to.shared_up != nullptr || to.shared_down != nullptr);
    if (shared) {
      run.mlp(inputs.x, inputs.shared_gate, inputs.shared_up, inputs.shared_down, y_gradient,
              {nullptr, to.shared_gate, to.shared_up, to.shared_down});
    }
    const bool logits = to.row_logits != nullptr || to.col_logits != nullptr;
    if (logits || tables.wanted() || to.x != nullptr) {
      const ScheduleOptions options = layer_schedule(call, shape, run.gpu(), false);
      const bool on_strips = options.kind == ScheduleKind::kStaircase;
      const bool listed = ids != nullptr;
      if (on_strips || !listed) {
        run.pack(inputs.row_logits, inputs.col_logits, on_strips ? PairsScratch{} : run.arrivals());
      }
      if (on_strips) {  // which selects once more: the pairs are the same, and there is no list to be sorted
        run.strips(inputs, options, y_gradient, shared, to);
      } else {
        const Pairs pairs = listed ? run.take(ids, gates) : run.select_again();
        float* const gates_gradient = run.scratch().pairs_backward.gradients.gates;
        run.experts(inputs.x, inputs.w_in, inputs.w_out, pairs, y_gradient, shared, gates_gradient, tables);
        if (logits) {
          run.select_backward(inputs.row_logits, inputs.col_logits, pairs.ids, false, gates_gradient,
                              to.row_logits, to.col_logits);
        }
      }
    }
    run.round(to.x);
  });
}

}  // namespace moescope::capi::gpu
