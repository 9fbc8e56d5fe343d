// experts, dense_masked (eq. 7 with a zero-filled gate matrix): Y = (G * sigma(X W^T)) V, chunk by chunk of
// experts.
#include "reference/stages/dense_masked.hpp"

#include <omp.h>

#include <algorithm>

#include "reference/stages/activation.hpp"
#include "reference/stages/dense_blocks.hpp"
#include "reference/stages/matrix.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {
namespace {

/// Widens each chunk's rows of `weights`, then calls body(block, rows, thread) for its token blocks in
/// parallel. A token block sees the chunks in order and by one thread at a time: deterministic.
template <class Body>
void for_each_block(const LayerShape& shape, const HostTensor& weights, int threads, const Body& body) {
  const auto chunk = std::min(chunk_experts(shape.hidden_size), shape.num_experts());
  MatrixF32 tile(chunk, shape.hidden_size);
  for (std::int64_t first = 0; first < shape.num_experts(); first += chunk) {
    auto rows = tile.topRows(std::min(chunk, shape.num_experts() - first));
    load_rows(weights, first, rows);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t token = 0; token < shape.num_tokens; token += kTokenBlock) {
      body(DenseBlock{token, std::min(token + kTokenBlock, shape.num_tokens), first, first + rows.rows()},
           rows, static_cast<std::size_t>(omp_get_thread_num()));
    }
  }
}

/// One thread's blocks.
struct Scratch {
  MatrixF32 x;  ///< [kTokenBlock, d]
  MatrixF32 p;  ///< [kTokenBlock, chunk] X W^T, or P

  explicit Scratch(const LayerShape& shape)
      : x(std::min(kTokenBlock, shape.num_tokens), shape.hidden_size),
        p(x.rows(), std::min(chunk_experts(shape.hidden_size), shape.num_experts())) {}
};

}  // namespace

std::vector<float> dense_scores(const LayerInputs& inputs, const Routing& routing) {
  std::vector<float> scores(routing.expert_ids.size());
  const int threads = omp_get_max_threads();
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads), Scratch(inputs.shape));
  for_each_block(inputs.shape, inputs.experts->w_in, threads,
                 [&](const DenseBlock& block, const auto& w, std::size_t thread) {
                   auto x = scratch[thread].x.topRows(block.tokens());
                   auto s = scratch[thread].p.topLeftCorner(block.tokens(), block.experts());
                   load_rows(inputs.hidden_states, block.token_begin, x);
                   s.noalias() = x * w.transpose();
                   for_each_pair(routing, block, [&](auto row, auto col, std::size_t pair) {
                     scores[pair] = routing.gates[pair] * activate(inputs.shape.activation, s(row, col));
                   });
                 });
  return scores;
}

HostTensor dense_combine(const LayerInputs& inputs, const Routing& routing, std::span<const float> scores) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  const auto y = out.f32();
  const Dtype p_dtype =
      rounds_scores(ScheduleKind::kDenseMasked, inputs.shape.dtype) ? inputs.shape.dtype : Dtype::kF32;
  const int threads = omp_get_max_threads();
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads), Scratch(inputs.shape));
  for_each_block(inputs.shape, inputs.experts->w_out, threads,
                 [&](const DenseBlock& block, const auto& v, std::size_t thread) {
                   auto p = scratch[thread].p.topLeftCorner(block.tokens(), block.experts());
                   p.setZero();
                   for_each_pair(routing, block, [&](auto row, auto col, std::size_t pair) {
                     p(row, col) = round_to(p_dtype, scores[pair]);
                   });
                   MatrixF32Map(y.row(block.token_begin), block.tokens(), y.cols).noalias() += p * v;
                 });
  return out;
}

std::int64_t dense_workspace_bytes(const LayerShape& shape, int threads) {
  const auto chunk = std::min(chunk_experts(shape.hidden_size), shape.num_experts());
  const auto tokens = std::min(kTokenBlock, shape.num_tokens);
  return dtype_bytes(Dtype::kF32) *
         (chunk * shape.hidden_size + threads * tokens * (shape.hidden_size + chunk));
}

}  // namespace moescope::reference
