#include "reference/stages/pair_ops.hpp"

#include <fmt/format.h>

#include "core/base/error.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/rounding.hpp"
#include "reference/stages/row_ops.hpp"

namespace moescope::reference {
namespace {

template <class T>
const T* expert_row(MatrixView<const T> weights, const Routing& routing, std::int64_t pair) {
  return weights.row(routing.expert_ids[static_cast<std::size_t>(pair)]);
}

}  // namespace

void score_pairs(const LayerInputs& inputs, const Routing& routing, std::span<const std::int64_t> pair_ids,
                 const float* x, std::span<float> scores) {
  with_storage_type(inputs.shape.dtype, [&]<class T>(T) {
    const auto w_in = view_as<T>(inputs.experts->w_in);
    for (std::size_t q = 0; q < pair_ids.size(); ++q) {
      const float product = dot(x, expert_row(w_in, routing, pair_ids[q]), w_in.cols);
      scores[q] =
          routing.gates[static_cast<std::size_t>(pair_ids[q])] * activate(inputs.shape.activation, product);
    }
  });
}

void combine_pairs(const LayerInputs& inputs, const Routing& routing, std::span<const std::int64_t> pair_ids,
                   std::span<const float> scores, float* y) {
  with_storage_type(inputs.shape.dtype, [&]<class T>(T) {
    const auto w_out = view_as<T>(inputs.experts->w_out);
    add_weighted_rows<T>(
        scores.first(pair_ids.size()), [&](std::size_t q) { return expert_row(w_out, routing, pair_ids[q]); },
        w_out.cols, y);
  });
}

void load_token(const LayerInputs& inputs, std::int64_t token, std::span<float> x) {
  with_storage_type(inputs.shape.dtype, [&]<class T>(T) {
    const auto view = view_as<T>(inputs.hidden_states);
    load_row(view.row(token), view.cols, x.data());
  });
}

void require_same_layer(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) {
  const auto& shape = inputs.shape;
  if (routing.num_tokens != shape.num_tokens || routing.grid_rows != shape.grid_rows ||
      routing.grid_cols != shape.grid_cols) {
    throw InvalidArgument(
        "routing",
        fmt::format("{} tokens, grid {} x {}", routing.num_tokens, routing.grid_rows, routing.grid_cols),
        fmt::format("must belong to {}", shape.label()));
  }
  const bool fits = std::ssize(schedule.sorted_pair_ids) == routing.num_pairs() &&
                    schedule.pair_offsets.size() == schedule.tokens.size() + 1;
  if (!fits) {
    throw InvalidArgument("schedule.sorted_pair_ids", fmt::format("[{}]", schedule.sorted_pair_ids.size()),
                          fmt::format("must hold the routing's {} pairs", routing.num_pairs()));
  }
}

void require_scores(const Routing& routing, std::span<const float> scores) {
  if (std::ssize(scores) != routing.num_pairs()) {
    throw InvalidArgument("scores", fmt::format("[{}]", scores.size()),
                          fmt::format("must be [{}], one per pair", routing.num_pairs()));
  }
}

}  // namespace moescope::reference
