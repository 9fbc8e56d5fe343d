#include "kernels/training/lists_backward.hpp"

#include <fmt/format.h>

#include "core/base/error.hpp"
#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kWordBytes = 4;

}  // namespace

std::vector<MemoryTerm> ListsBackward::memory() const {
  const std::int64_t pairs = shape().num_pairs();
  const MemoryPart routing = design_.fixed_routing     ? MemoryPart::kInput
                             : design_.selects_again() ? MemoryPart::kWorking
                                                       : MemoryPart::kSaved;
  std::vector<MemoryTerm> terms = {
      {routing, "routing", RoutingBuffers::required_bytes(shape())},                         // 8 M
      {MemoryPart::kGradient, "touched experts", (shape().num_experts() + 1) * kWordBytes},  // N + 1
      {design_.fixed_routing ? MemoryPart::kGradient : MemoryPart::kWorking, "gates' gradients",
       pairs * kWordBytes},                         // M fp32
      working("p and q", 2 * pairs * kWordBytes)};  // 2 M fp32
  if (design_.save == SaveMode::kScores) {
    terms.push_back({MemoryPart::kSaved, "z", pairs * kWordBytes});  // M fp32
  }
  return terms;
}

std::int64_t ListsBackward::scratch_bytes(Stage stage) const {
  return stage == Stage::kRouterSelect ? router_select_workspace_bytes(shape(), gpu()) : 0;
}

std::string ListsBackward::kernels(Stage stage) const {
  switch (stage) {
    case Stage::kRouterSelect:
      return "router_select + log_softmax";
    case Stage::kRouterSelectBackward:
      return "router_select_backward";
    default:
      return expert_kernels(stage);
  }
}

void ListsBackward::prepare(const BackwardData& data, cudaStream_t stream) {
  data_ = data;
  routing_.emplace(shape());
  pair_gradients_ = make_filled<float>(3 * shape().num_pairs(), stream);
  touched_ = make_filled<std::int32_t>(shape().num_experts() + 1, stream);
  if (design_.save == SaveMode::kScores) {
    scores_ = make_filled<float>(shape().num_pairs(), stream);
  }
}

std::int64_t ListsBackward::allocated_bytes() const {
  return RoutingBuffers::required_bytes(shape()) + pair_gradients_.bytes() + scores_.bytes() +
         touched_.bytes();
}

DevicePairGradients ListsBackward::pair_gradients() const {
  float* const first = pair_gradients_.get();
  const std::int64_t pairs = shape().num_pairs();
  return {.gates = first, .p = first + pairs, .q = first + 2 * pairs};
}

WgradOutput ListsBackward::wgrad_output() const {
  return {.dtype = design_.gradients,
          .w_in = data_.w_in_gradient,
          .w_out = data_.w_out_gradient,
          .form = design_.form};
}

DgradInputs ListsBackward::dgrad_inputs() const {
  return {.hidden_states = data_.hidden_states, .dy = data_.dy, .saved = scores_.get(), .save = nullptr};
}

void ListsBackward::enqueue(Stage stage, cudaStream_t stream) {
  switch (stage) {
    case Stage::kRouterSelect:
      launch_router_select(shape(), data_.logits, pairs(), data_.bad_logit, data_.scratch, stream);
      launch_log_softmax(shape(), data_.logits, data_.lse, stream);
      break;
    case Stage::kExpertsDgrad:
      enqueue_dgrad(dgrad_inputs(), stream);
      break;
    case Stage::kExpertsWgrad:
      enqueue_wgrad(stream);
      break;
    case Stage::kRouterSelectBackward:
      launch_router_select_backward(shape(), pairs(), pair_gradients().gates, log_probs(),
                                    data_.logits_gradient, stream);
      break;
    default:
      throw InternalError(
          fmt::format("no stage {} in the backward of {}", to_string(stage), to_string(options())));
  }
}

/// The data gradients' kernel computes z anyway; what else it leaves is overwritten by the first run.
void ListsBackward::save_scores(cudaStream_t stream) {
  DgradInputs inputs = dgrad_inputs();
  inputs.saved = nullptr;
  inputs.save = scores_.get();
  enqueue_dgrad(inputs, stream);
}

DeviceLogProbs ListsBackward::log_probs() const {
  const std::int64_t sides = shape().grid_rows + shape().grid_cols;
  return {.row = data_.logits, .col = data_.logits + shape().grid_rows, .row_lead = sides, .col_lead = sides};
}

void ListsBackward::enqueue_loads(std::int32_t* loads, cudaStream_t stream) {
  launch_expert_loads(shape(), pairs(), loads, stream);
}

Routing ListsBackward::routing(cudaStream_t stream) const { return routing_->download(shape(), stream); }

void ListsBackward::set_routing(const Routing& routing, cudaStream_t stream) {
  require_routing_of(shape(), routing);
  routing_->upload(routing, stream);
}

std::vector<float> ListsBackward::gate_gradients(cudaStream_t stream) const {
  return copy_to_host(pair_gradients().gates, shape().num_pairs(), stream);
}

std::vector<std::int32_t> ListsBackward::touched_experts(cudaStream_t stream) const {
  const std::int32_t count = copy_to_host(touched_count(), 1, stream).front();
  return copy_to_host(touched(), count, stream);
}

}  // namespace moescope::cuda
