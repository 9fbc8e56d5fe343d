// experts_dgrad: of every pair u = dy . w_out, z = x . w_in (unless it was saved), the gate's gradient u a,
// and q = u gate act'(z), which goes on to dX with the row of W.
#include <omp.h>

#include "core/base/error.hpp"
#include "reference/backward/activation_slope.hpp"
#include "reference/backward/backward.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/dense_blocks.hpp"
#include "reference/stages/matrix.hpp"
#include "reference/stages/pair_ops.hpp"
#include "reference/stages/stages.hpp"
#include "reference/stages/task_loop.hpp"

namespace moescope::reference {
namespace {

/// Where the pairs' values go.
struct PairWriter {
  const LayerInputs& inputs;
  const Routing& routing;
  std::span<const float> saved;
  bool rounds;
  ExpertsDgrad& out;

  /// From z, unless it was saved, and u.
  void write(std::size_t pair, float product, float u) const {
    const Activation activation = inputs.shape.activation;
    const float z = saved.empty() ? product : saved[pair];
    const float gate = routing.gates[pair];
    const float a = activate(activation, z);
    out.gates[pair] = u * a;
    const Dtype dtype = rounds ? inputs.shape.dtype : Dtype::kF32;
    out.p[pair] = round_to(dtype, gate * a);
    out.q[pair] = round_to(dtype, u * gate * activation_slope(activation, z));
  }
};

template <class T>
void by_tasks(const PairWriter& writer, const HostTensor& dy, const Schedule& schedule,
              MatrixView<float> dx) {
  struct Scratch {
    std::vector<float> x;
    std::vector<float> dy;
    std::vector<float> q;
  };
  const auto d = static_cast<std::size_t>(writer.inputs.shape.hidden_size);
  const int threads = omp_get_max_threads();
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads),
                               {std::vector<float>(d), std::vector<float>(d),
                                std::vector<float>(static_cast<std::size_t>(max_task_pairs(schedule)))});
  const auto x = view_as<T>(writer.inputs.hidden_states);
  const auto g_y = view_as<T>(dy);
  const auto w = view_as<T>(writer.inputs.experts->w_in);
  const auto v = view_as<T>(writer.inputs.experts->w_out);
  const auto& ids = writer.routing.expert_ids;
  for_each_task(schedule, writer.routing.num_tokens, threads,
                [&](int thread, std::int32_t token, std::span<const std::int64_t> pair_ids) {
                  auto& mine = scratch[static_cast<std::size_t>(thread)];
                  load_row(x.row(token), x.cols, mine.x.data());
                  load_row(g_y.row(token), x.cols, mine.dy.data());
                  for (std::size_t k = 0; k < pair_ids.size(); ++k) {
                    const auto pair = static_cast<std::size_t>(pair_ids[k]);
                    const float z =
                        writer.saved.empty() ? dot(mine.x.data(), w.row(ids[pair]), x.cols) : 0.0F;
                    writer.write(pair, z, dot(mine.dy.data(), v.row(ids[pair]), x.cols));
                    mine.q[k] = writer.out.q[pair];
                  }
                  add_weighted_rows<T>(
                      std::span<const float>(mine.q).first(pair_ids.size()),
                      [&](std::size_t k) { return w.row(ids[static_cast<std::size_t>(pair_ids[k])]); },
                      x.cols, dx.row(token));
                });
}

/// All experts for all tokens: S = X W^T, U = dY V^T, dX = Q W with Q zero where nothing was selected.
void dense(const PairWriter& writer, const HostTensor& dy, MatrixView<float> dx) {
  const auto& shape = writer.inputs.shape;
  const auto chunk = std::min(chunk_experts(shape.hidden_size), shape.num_experts());
  struct Scratch {
    MatrixF32 x, s, u;
  };
  const int threads = omp_get_max_threads();
  const auto block_tokens = std::min(kTokenBlock, shape.num_tokens);
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads),
                               {MatrixF32(block_tokens, shape.hidden_size), MatrixF32(block_tokens, chunk),
                                MatrixF32(block_tokens, chunk)});
  MatrixF32 w_tile(chunk, shape.hidden_size);
  MatrixF32 v_tile(chunk, shape.hidden_size);
  for (std::int64_t first = 0; first < shape.num_experts(); first += chunk) {
    const auto experts = std::min(chunk, shape.num_experts() - first);
    auto w = w_tile.topRows(experts);
    auto v = v_tile.topRows(experts);
    load_rows(writer.inputs.experts->w_in, first, w);
    load_rows(writer.inputs.experts->w_out, first, v);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t token = 0; token < shape.num_tokens; token += kTokenBlock) {
      auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
      const DenseBlock block{token, std::min(token + kTokenBlock, shape.num_tokens), first, first + experts};
      auto x = mine.x.topRows(block.tokens());
      auto s = mine.s.topLeftCorner(block.tokens(), experts);
      auto u = mine.u.topLeftCorner(block.tokens(), experts);
      if (writer.saved.empty()) {
        load_rows(writer.inputs.hidden_states, token, x);
        s.noalias() = x * w.transpose();
      }
      load_rows(dy, token, x);
      u.noalias() = x * v.transpose();
      for_each_pair(writer.routing, block, [&](auto row, auto col, std::size_t pair) {
        writer.write(pair, writer.saved.empty() ? s(row, col) : 0.0F, u(row, col));
      });
      s.setZero();
      for_each_pair(writer.routing, block,
                    [&](auto row, auto col, std::size_t pair) { s(row, col) = writer.out.q[pair]; });
      MatrixF32Map(dx.row(token), block.tokens(), dx.cols).noalias() += s * w;
    }
  }
}

}  // namespace

ExpertsDgrad experts_dgrad(const LayerInputs& inputs, const HostTensor& dy, const Routing& routing,
                           const Schedule& schedule, std::span<const float> saved, HostTensor& dx) {
  require_same_layer(inputs, routing, schedule);
  if (!saved.empty()) {
    require_scores(routing, saved);
  }
  const auto pairs = routing.expert_ids.size();
  ExpertsDgrad out{std::vector<float>(pairs), std::vector<float>(pairs), std::vector<float>(pairs)};
  const PairWriter writer{inputs, routing, saved, rounds_scores(schedule.kind, inputs.shape.dtype), out};
  if (schedule.kind == ScheduleKind::kDenseMasked) {
    dense(writer, dy, dx.f32());
  } else {
    with_storage_type(inputs.shape.dtype, [&]<class T>(T) { by_tasks<T>(writer, dy, schedule, dx.f32()); });
  }
  return out;
}

std::vector<float> saved_scores(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) {
  require_same_layer(inputs, routing, schedule);
  std::vector<float> scores(routing.expert_ids.size());
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> scratch(
      static_cast<std::size_t>(threads),
      std::vector<float>(static_cast<std::size_t>(inputs.shape.hidden_size)));
  with_storage_type(inputs.shape.dtype, [&]<class T>(T) {
    const auto w = view_as<T>(inputs.experts->w_in);
    for_each_task(schedule, routing.num_tokens, threads,
                  [&](int thread, std::int32_t token, std::span<const std::int64_t> pair_ids) {
                    auto& x = scratch[static_cast<std::size_t>(thread)];
                    load_token(inputs, token, x);
                    for (const auto id : pair_ids) {
                      const auto pair = static_cast<std::size_t>(id);
                      scores[pair] = round_to(inputs.shape.dtype,
                                              dot(x.data(), w.row(routing.expert_ids[pair]), w.cols));
                    }
                  });
  });
  return scores;
}

}  // namespace moescope::reference
