#include "kernels/systems/ffn_experts.hpp"

#include <algorithm>
#include <span>
#include <vector>

#include "core/tiling/tile_config.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kId = sizeof(std::int32_t);

template <class T>
std::vector<T> fetch(const DeviceBuffer<T>& buffer, std::int64_t count, cudaStream_t stream) {
  std::vector<T> host(static_cast<std::size_t>(count));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(host.data(), buffer.get(), host.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return host;
}

/// How many of `ran` are not among `chosen`; both ascending.
std::int64_t count_added(std::span<const std::int32_t> ran, std::span<const std::int32_t> chosen) {
  return std::ranges::count_if(ran, [&](std::int32_t id) { return !std::ranges::binary_search(chosen, id); });
}

}  // namespace

std::int64_t FfnForm::rows() const {
  if (kind == ScheduleKind::kDenseMasked) {
    return shape.num_tokens * shape.num_experts;
  }
  return ruled() ? max_ruled_rows(shape, tokens) : pairs();
}

std::int64_t FfnForm::results_offset() const {
  return round_up(rows() * shape.expert_size * dtype_bytes(shape.dtype), 256);
}

std::int64_t FfnForm::working_bytes() const {
  return results_offset() + (grouped() ? rows() * shape.hidden_size * dtype_bytes(shape.dtype) : 0);
}

std::int64_t FfnForm::permutation_bytes() const {
  if (!grouped()) {
    return 0;
  }
  const std::int64_t plain =
      rows() * kId +
      max_grouped_tiles(rows(), shape.num_experts) * static_cast<std::int64_t>(sizeof(GroupedTile)) + kId;
  const std::int64_t of_pairs = adds() ? shape.num_tokens * shape.num_experts * kId : pairs() * kId;
  const std::int64_t of_rule = ruled() ? rows() * kId + (2 * shape.num_experts + 1) * kId : 0;
  return plain + of_pairs + of_rule;
}

std::int64_t FfnForm::scratch_bytes() const {
  if (!scheduled()) {
    return 0;
  }
  return ruled() ? ffn_rule_workspace_bytes(shape, tokens)
                 : ffn_schedule_workspace_bytes(pairs(), shape.num_experts);
}

FfnExperts::FfnExperts(const FfnForm& form, cudaStream_t stream)
    : form_(form), scratch_(form.scratch_bytes()) {
  if (!form.grouped()) {
    return;
  }
  const std::int64_t num_experts = form.shape.num_experts;
  row_tokens_ = DeviceBuffer<std::int32_t>(form.rows());
  tiles_ = DeviceBuffer<GroupedTile>(max_grouped_tiles(form.rows(), num_experts));
  num_tiles_ = DeviceBuffer<std::int32_t>(1);
  if (form.adds()) {
    token_rows_ = DeviceBuffer<std::int32_t>(form.shape.num_tokens * num_experts);
  } else {
    pair_rows_ = DeviceBuffer<std::int32_t>(form.pairs());
  }
  if (form.ruled()) {
    row_gates_ = DeviceBuffer<float>(form.rows());
    expert_rows_ = DeviceBuffer<std::int32_t>(num_experts + 1);
    expert_pairs_ = DeviceBuffer<std::int32_t>(num_experts);
  }
  if (!form.scheduled()) {
    launch_ffn_all_rows(form.shape, all_rows(), stream);
  }
}

void FfnExperts::enqueue_schedule(DeviceRouting routing, const float* logits, cudaStream_t stream) {
  if (form_.ruled()) {
    launch_ffn_rule(form_.shape, form_.tokens, routing, logits, ruled_rows(), scratch_.get(), stream);
  } else {
    launch_ffn_schedule(form_.shape, routing, permutation(), scratch_.get(), stream);
  }
}

/// Two grouped products over the permuted batch, then every token adds the results of its pairs in the order
/// of expert ids.
void FfnExperts::enqueue_experts(const void* hidden_states, const FfnMatrices& weights, DeviceRouting routing,
                                 void* working, const ExpertOutput& output, cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  const SystemShape& shape = form_.shape;
  if (!form_.grouped()) {
    launch_ffn_token_centric(shape, hidden_states, weights, routing, working, output, stream);
    return;
  }
  if (!form_.scheduled()) {
    launch_ffn_pair_rows(shape, routing, all_rows(), stream);
  }
  void* const results = static_cast<std::byte*>(working) + form_.results_offset();
  GroupedGemm up;
  up.dtype = shape.dtype;
  up.num_experts = shape.num_experts;
  up.rows = form_.rows();
  up.n = shape.expert_size;
  up.k = shape.hidden_size;
  up.a = hidden_states;
  up.row_ids = row_tokens_.get();
  up.weights = weights.gate_up;
  up.out = working;
  up.tiles = tiles_.get();
  up.num_tiles = num_tiles_.get();
  launch_grouped_gated(up, shape.activation, stream);

  GroupedGemm down = up;
  down.n = shape.hidden_size;
  down.k = shape.expert_size;
  down.a = working;
  down.row_ids = nullptr;
  down.weights = weights.down;
  down.out = results;
  launch_grouped_product(down, stream);

  if (form_.ruled()) {
    launch_ruled_sums(shape, results, ruled_rows(), routing, output, stream);
  } else {
    launch_row_sums(shape.row_shape(), results, pair_rows_.get(), routing.gates, output, stream);
  }
}

TokenAssignment FfnExperts::assignment(const Routing& chosen, cudaStream_t stream) const {
  const std::int64_t num_experts = form_.shape.num_experts;
  const auto first = fetch(expert_rows_, num_experts + 1, stream);
  const auto count = fetch(expert_pairs_, num_experts, stream);
  const auto tokens = fetch(row_tokens_, first.back(), stream);
  const auto gates = fetch(row_gates_, first.back(), stream);

  TokenAssignment assignment;
  assignment.rule = form_.tokens;
  assignment.chosen_pairs = chosen.num_pairs();
  assignment.capacity =
      form_.tokens.kind == TokenRuleKind::kCapacity ? form_.rows() / num_experts : std::int64_t{0};
  Routing& ran = assignment.routing;
  ran.num_tokens = chosen.num_tokens;
  ran.grid_rows = chosen.grid_rows;
  ran.grid_cols = chosen.grid_cols;
  ran.token_offsets.assign(static_cast<std::size_t>(chosen.num_tokens) + 1, 0);
  const auto for_each_pair = [&](const auto& visit) {
    for (std::int32_t expert = 0; expert < num_experts; ++expert) {
      for (std::int32_t row = first[expert]; row < first[expert] + count[expert]; ++row) {
        visit(expert, static_cast<std::size_t>(row));
      }
    }
  };
  for_each_pair([&](std::int32_t, std::size_t row) { ++ran.token_offsets[tokens[row] + 1]; });
  for (std::size_t token = 1; token < ran.token_offsets.size(); ++token) {
    ran.token_offsets[token] += ran.token_offsets[token - 1];
  }
  ran.expert_ids.resize(static_cast<std::size_t>(ran.token_offsets.back()));
  ran.gates.resize(ran.expert_ids.size());
  std::vector<std::int64_t> next(ran.token_offsets.begin(), ran.token_offsets.end() - 1);
  for_each_pair([&](std::int32_t expert, std::size_t row) {
    const std::int64_t at = next[tokens[row]]++;
    ran.expert_ids[at] = expert;
    ran.gates[at] = gates[row];
  });
  for (std::int64_t token = 0; token < ran.num_tokens; ++token) {
    const auto left = ran.ids_of(token);
    const auto had = chosen.ids_of(token);
    const std::int64_t added = count_added(left, had);
    assignment.added_pairs += added;
    assignment.dropped_pairs += std::ssize(had) - (std::ssize(left) - added);
    assignment.tokens_without += left.empty() && !had.empty() ? 1 : 0;
  }
  return assignment;
}

}  // namespace moescope::cuda
