#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/tiling/strip_tiles.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/buffers/strip_lists.hpp"
#include "kernels/contract/strips_backward.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/host_copy.hpp"
#include "kernels/training/backward_path.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kWordBytes = 4;

/// staircase, straight from the router's scores: no pair is listed. What belongs to pairs lies by strip and
/// token (StripsPairs).
class StripsBackward final : public BackwardPath {
 public:
  explicit StripsBackward(const BackwardDesign& design)
      : BackwardPath(design),
        capacity_(strip_capacity(shape(), options().strip_rule, options().tile_tokens, gpu())),
        layout_(strips_pairs_layout(shape(), capacity_.max_entries, capacity_.max_tiles)) {}

  bool schedules() const override { return true; }
  bool deterministic() const override { return options().deterministic; }

  std::vector<MemoryTerm> memory() const override {
    const MemoryPart kept = design_.selects_again() ? MemoryPart::kWorking : MemoryPart::kSaved;
    const auto working = [](std::string_view what, std::int64_t bytes) {
      return MemoryTerm{MemoryPart::kWorking, what, bytes};
    };
    std::vector<MemoryTerm> terms = {
        {kept, "strips", capacity_.bytes},
        {kept, "strips' tokens in order", 2 * capacity_.max_entries * kWordBytes},
        {design_.save == SaveMode::kScores ? MemoryPart::kSaved : MemoryPart::kWorking, "z", layout_.z_bytes},
        working("p and q", 2 * layout_.row_bytes),
        working("gates' gradients", layout_.row_bytes + 2 * layout_.sum_bytes),
        working("scaled sums of dX", staircase_sums_bytes(shape(), sums()) + shape().num_tokens * kWordBytes),
        working("bound of the weights", kWordBytes)};
    if (lists()) {
      const std::int64_t experts = shape().num_experts();
      terms.push_back({MemoryPart::kGradient, "touched experts", (experts + 1) * kWordBytes});
      terms.push_back(working("pairs of every expert, for the list", experts * kWordBytes));
      terms.push_back(working("listing touched experts", touched_experts_workspace_bytes(shape())));
    }
    return terms;
  }
  std::int64_t allocated_bytes() const override {
    return strips_.bytes() + tokens_.bytes() + entries_.bytes() + z_.bytes() + p_.bytes() + q_.bytes() +
           h_.bytes() + h_sums_.bytes() + gate_sums_.bytes() + sums_.bytes() + exponents_.bytes() +
           bound_.bytes() + touched_.bytes() + loads_.bytes() + listing_.bytes();
  }
  std::int64_t scratch_bytes(Stage stage) const override {
    return stage == Stage::kRouterSelectBackward ? strips_router_select_backward_workspace_bytes(shape()) : 0;
  }

  std::string kernels(Stage stage) const override {
    switch (stage) {
      case Stage::kRouterSelect:
        return "router_select_strips";
      case Stage::kSchedule:
        return "schedule_strips + strips_order";
      case Stage::kExpertsDgrad:
        return std::string("strips_backward_prepare + ") +
               (design_.save == SaveMode::kScores ? "" : "strips_scores + ") + "strips_dgrad<" +
               (sums() == StaircaseSums::kFp16 ? "fp16" : "fixed-point") + " sums> + strips_finish";
      case Stage::kExpertsWgrad:
        return lists() ? "strips_wgrad + strips_loads + touched_experts" : "strips_wgrad";
      default:
        return "strips_router_select_backward";
    }
  }

  void prepare(const BackwardData& data, cudaStream_t stream) override {
    data_ = data;
    strips_ = StripBuffers(shape(), options().strip_rule, options().tile_tokens);
    tokens_ = DeviceBuffer<std::int32_t>(capacity_.max_entries);
    entries_ = DeviceBuffer<std::int32_t>(capacity_.max_entries);
    // As with covers: a token's list is filled as far as its cover goes, and copied to the host as a whole.
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(entries_.get(), 0, static_cast<std::size_t>(entries_.bytes()), stream));
    sums_ = DeviceBuffer<std::byte>(staircase_sums_bytes(shape(), sums()));
    exponents_ = DeviceBuffer<std::int32_t>(shape().num_tokens);
    bound_ = DeviceBuffer<float>(1);
    if (lists()) {
      touched_ = make_filled<std::int32_t>(shape().num_experts() + 1, stream);
      loads_ = make_filled<std::int32_t>(shape().num_experts(), stream);
      listing_ = DeviceBuffer<std::byte>(touched_experts_workspace_bytes(shape()));
    }
    DeviceWeights exchanged = *data.weights;
    std::swap(exchanged.w_in, exchanged.w_out);
    launch_expert_bound(shape(), exchanged, bound_.get(), stream);
  }

  /// What belongs to pairs, for the entries and tiles of the selection: they are half of what one could have.
  void fit(cudaStream_t stream) override {
    const auto counts = copy_to_host(strips_.view().counts, 2, stream);
    layout_ = strips_pairs_layout(shape(), counts[0], counts[1]);
    z_ = DeviceBuffer<std::byte>(layout_.z_bytes);
    p_ = DeviceBuffer<std::byte>(layout_.row_bytes);
    q_ = DeviceBuffer<std::byte>(layout_.row_bytes);
    h_ = DeviceBuffer<std::byte>(layout_.row_bytes);
    h_sums_ = DeviceBuffer<float>(layout_.sum_bytes / kWordBytes);
    gate_sums_ = DeviceBuffer<float>(layout_.sum_bytes / kWordBytes);
  }

  void enqueue(Stage stage, cudaStream_t stream) override {
    const StripRule rule = options().strip_rule;
    switch (stage) {
      case Stage::kRouterSelect:
        launch_router_select_strips(shape(), rule, data_.logits, strips_.view(), data_.bad_logit, stream);
        if (data_.lse != nullptr) {
          launch_strips_log_sums(shape(), data_.logits, strips_.view(), data_.lse, stream);
        }
        break;
      case Stage::kSchedule:
        launch_schedule_strips(shape(), rule, options().tile_tokens, strips_.view(), stream);
        launch_strips_order(shape(), rule, strips_.view(), order(), stream);
        break;
      case Stage::kExpertsDgrad:
        launch_strips_backward_prepare(shape(), data_.dy, bound_.get(), strips(), pairs(), dx_sums(), stream);
        if (design_.save != SaveMode::kScores) {
          scores(stream);
        }
        launch_strips_dgrad(shape(), data_.dy, *data_.weights, strips(), pairs(), dx_sums(), stream);
        launch_strips_finish(shape(), dx_sums(), data_.dx_holds, data_.dx, stream);
        break;
      case Stage::kExpertsWgrad:
        launch_strips_wgrad(
            shape(), rule, data_.hidden_states, data_.dy, strips(), pairs(),
            {.dtype = design_.gradients,
             .w_in = data_.w_in_gradient,
             .w_out = data_.w_out_gradient,
             .adds = design_.form == GradientForm::kAdded},
            stream);
        list_touched(stream);
        break;
      case Stage::kRouterSelectBackward:
        launch_strips_router_select_backward(shape(), rule, strips(), order(), pairs(), data_.logits_gradient,
                                             data_.scratch, stream);
        break;
      default:
        throw InternalError(fmt::format("no stage {} in the backward on strips", to_string(stage)));
    }
  }
  void save_scores(cudaStream_t stream) override {
    // dgrad's preparation clears the counter of this pass as well.
    launch_strips_backward_prepare(shape(), data_.dy, bound_.get(), strips(), pairs(), dx_sums(), stream);
    scores(stream);
  }

  const std::int32_t* touched() const override { return touched_.get(); }
  const std::int32_t* touched_count() const override { return touched_.get() + shape().num_experts(); }
  DeviceLogProbs log_probs() const override {
    return {.row = strips_.view().row_log_probs,
            .col = strips_.view().col_log_probs,
            .row_lead = shape().grid_rows,
            .col_lead = shape().grid_cols};
  }
  void enqueue_loads(std::int32_t* loads, cudaStream_t stream) override {
    launch_strips_loads(shape(), options().strip_rule, strips(), loads, stream);
  }

  Routing routing(cudaStream_t stream) const override {
    return routing_of(shape(), strips_.download(stream));
  }
  void set_routing(const Routing& /*routing*/, cudaStream_t /*stream*/) override {
    throw InternalError("the backward on strips selects from logits and takes no list of pairs");
  }
  /// h / gate of every pair; 0 where the gate is.
  std::vector<float> gate_gradients(cudaStream_t stream) const override {
    const HostStrips host = strips_.download(stream);
    const Routing routing = routing_of(shape(), host);
    const std::vector<PairPlace> places = places_of(shape(), host);
    const auto entries = copy_to_host(entries_.get(), entries_.count(), stream);
    const auto h = copy_to_host(static_cast<const std::uint16_t*>(static_cast<const void*>(h_.get())),
                                host.counts[0] * layout_.pitch, stream);
    std::vector<float> gradients;
    gradients.reserve(places.size());
    for (std::int64_t token = 0; token < shape().num_tokens; ++token) {
      const auto at = static_cast<std::size_t>(token);
      for (auto pair = routing.token_offsets[at]; pair < routing.token_offsets[at + 1]; ++pair) {
        const PairPlace place = places[static_cast<std::size_t>(pair)];
        const std::int64_t entry =
            entries[static_cast<std::size_t>(token * capacity_.max_cover + place.cover)];
        const float value = to_float(Bf16{h[static_cast<std::size_t>(entry * layout_.pitch + place.place)]});
        const float gate = routing.gates[static_cast<std::size_t>(pair)];
        gradients.push_back(gate == 0 ? 0 : value / gate);
      }
    }
    return gradients;
  }
  std::vector<std::int32_t> touched_experts(cudaStream_t stream) const override {
    if (!lists()) {
      return moescope::touched_experts(routing(stream));
    }
    return copy_to_host(touched(), copy_to_host(touched_count(), 1, stream).front(), stream);
  }

 private:
  /// Strips write whole tiles, so the list is made for who reads it alone.
  bool lists() const { return design_.lists_touched; }
  void list_touched(cudaStream_t stream) {
    if (lists()) {
      MOESCOPE_CUDA_CHECK(cudaMemsetAsync(loads_.get(), 0, static_cast<std::size_t>(loads_.bytes()), stream));
      enqueue_loads(loads_.get(), stream);
      launch_touched_experts(shape(), loads_.get(), touched_.get(), touched_.get() + shape().num_experts(),
                             listing_.get(), stream);
    }
  }
  StaircaseSums sums() const {
    return strips_sum_in_fp16(shape(), options()) ? StaircaseSums::kFp16 : StaircaseSums::kFixedPoint;
  }
  StripsOrder order() const { return {.strip_tokens = tokens_.get(), .entries = entries_.get()}; }
  DeviceStrips strips() const { return order().apply(strips_.view()); }
  StripsPairs pairs() const {
    return {.layout = layout_,
            .z = z_.get(),
            .p = p_.get(),
            .q = q_.get(),
            .h = h_.get(),
            .h_sums = h_sums_.get(),
            .gate_sums = gate_sums_.get()};
  }
  StaircaseOutput dx_sums() const {
    return {.kind = sums(), .sums = sums_.get(), .exponents = exponents_.get(), .log_scales = nullptr};
  }
  void scores(cudaStream_t stream) const {
    launch_strips_scores(shape(), data_.hidden_states, *data_.weights, strips(), pairs(), stream);
  }

  StripCapacity capacity_;
  StripsPairsLayout layout_;
  StripBuffers strips_;
  DeviceBuffer<std::int32_t> tokens_;
  DeviceBuffer<std::int32_t> entries_;
  DeviceBuffer<std::byte> z_;
  DeviceBuffer<std::byte> p_;
  DeviceBuffer<std::byte> q_;
  DeviceBuffer<std::byte> h_;
  DeviceBuffer<float> h_sums_;
  DeviceBuffer<float> gate_sums_;
  DeviceBuffer<std::byte> sums_;
  DeviceBuffer<std::int32_t> exponents_;
  DeviceBuffer<float> bound_;
  DeviceBuffer<std::int32_t> touched_;  ///< [N + 1]: the list, and how many
  DeviceBuffer<std::int32_t> loads_;    ///< [N] pairs of every expert
  DeviceBuffer<std::byte> listing_;
};

}  // namespace

std::unique_ptr<BackwardPath> make_strips_backward(const BackwardDesign& design) {
  return std::make_unique<StripsBackward>(design);
}

}  // namespace moescope::cuda
