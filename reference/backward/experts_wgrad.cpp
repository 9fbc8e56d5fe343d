// experts_wgrad: dW_i = sum of q x and dV_i = sum of p dy over the pairs of expert i, by one owner.
#include <omp.h>

#include <utility>

#include "reference/backward/backward.hpp"
#include "reference/stages/dense_blocks.hpp"
#include "reference/stages/matrix.hpp"
#include "reference/stages/pair_ops.hpp"

namespace moescope::reference {
namespace {

/// Pairs by expert, in the schedule's order within one: item by item, tokens ascending.
struct PairsByExpert {
  std::vector<std::int64_t> offsets;  ///< [N+1]
  std::vector<std::int64_t> pairs;    ///< [M]
  std::vector<std::int32_t> tokens;   ///< [M] of the pairs

  PairsByExpert(const Routing& routing, const Schedule& schedule)
      : offsets(static_cast<std::size_t>(routing.num_experts()) + 1),
        pairs(routing.expert_ids.size()),
        tokens(routing.expert_ids.size()) {
    for (const auto id : routing.expert_ids) {
      ++offsets[static_cast<std::size_t>(id) + 1];
    }
    for (std::size_t e = 1; e < offsets.size(); ++e) {
      offsets[e] += offsets[e - 1];
    }
    std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
    for (std::size_t task = 0; task < schedule.tokens.size(); ++task) {
      for (auto at = schedule.pair_offsets[task]; at < schedule.pair_offsets[task + 1]; ++at) {
        const auto pair = schedule.sorted_pair_ids[static_cast<std::size_t>(at)];
        const auto expert = static_cast<std::size_t>(routing.expert_ids[static_cast<std::size_t>(pair)]);
        const auto place = static_cast<std::size_t>(next[expert]++);
        pairs[place] = pair;
        tokens[place] = schedule.tokens[task];
      }
    }
  }
};

/// rows[e] = sum over its pairs of scale[pair] * source[token].
template <class T>
void add_by_expert(const PairsByExpert& sorted, std::span<const float> scale, MatrixView<const T> source,
                   MatrixView<float> rows) {
#pragma omp parallel
  {
    std::vector<float> scales;
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t expert = 0; expert < rows.rows; ++expert) {
      const auto begin = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert)]);
      const auto end = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert) + 1]);
      scales.clear();
      for (auto at = begin; at < end; ++at) {
        scales.push_back(scale[static_cast<std::size_t>(sorted.pairs[at])]);
      }
      add_weighted_rows<T>(
          scales, [&](std::size_t k) { return source.row(sorted.tokens[begin + k]); }, source.cols,
          rows.row(expert));
    }
  }
}

/// rows = S^T source with S [L,N] the pairs' scales, zero where nothing was selected: a chunk of experts by
/// one thread, token blocks in order.
void add_dense(const Routing& routing, std::span<const float> scale, const HostTensor& source,
               MatrixView<float> rows) {
  constexpr std::int64_t kChunk = 256;
#pragma omp parallel
  {
    MatrixF32 x(std::min(kTokenBlock, source.rows()), source.cols());
    MatrixF32 s(x.rows(), std::min(kChunk, rows.rows));
#pragma omp for schedule(dynamic)
    for (std::int64_t first = 0; first < rows.rows; first += kChunk) {
      const auto experts = std::min(kChunk, rows.rows - first);
      MatrixF32Map sum(rows.row(first), experts, rows.cols);
      for (std::int64_t token = 0; token < source.rows(); token += kTokenBlock) {
        const DenseBlock block{token, std::min(token + kTokenBlock, source.rows()), first, first + experts};
        auto x_block = x.topRows(block.tokens());
        auto s_block = s.topLeftCorner(block.tokens(), experts);
        load_rows(source, token, x_block);
        s_block.setZero();
        for_each_pair(routing, block,
                      [&](auto row, auto col, std::size_t pair) { s_block(row, col) = scale[pair]; });
        sum.noalias() += s_block.transpose() * x_block;
      }
    }
  }
}

}  // namespace

ExpertsWgrad experts_wgrad(const LayerInputs& inputs, const HostTensor& dy, const Routing& routing,
                           const Schedule& schedule, std::span<const float> p, std::span<const float> q) {
  require_same_layer(inputs, routing, schedule);
  require_scores(routing, p);
  require_scores(routing, q);
  const auto zeros = [&] {
    return HostTensor::zeros(Dtype::kF32, inputs.shape.num_experts(), inputs.shape.hidden_size);
  };
  ExpertsWgrad out{zeros(), zeros()};
  if (schedule.kind == ScheduleKind::kDenseMasked) {
    add_dense(routing, q, inputs.hidden_states, out.w_in.f32());
    add_dense(routing, p, dy, out.w_out.f32());
    return out;
  }
  const PairsByExpert sorted(routing, schedule);
  with_storage_type(inputs.shape.dtype, [&]<class T>(T) {
    add_by_expert(sorted, q, view_as<T>(inputs.hidden_states), out.w_in.f32());
    add_by_expert(sorted, p, view_as<T>(dy), out.w_out.f32());
  });
  return out;
}

}  // namespace moescope::reference
