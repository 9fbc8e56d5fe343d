// experts, dense_masked (eq. 7 with a zero-filled gate matrix): Y = (G * sigma(X W^T)) V, chunk by chunk of
// experts.
#include "reference/dense_masked.hpp"

#include <omp.h>

#include <algorithm>

#include "reference/activation.hpp"
#include "reference/matrix.hpp"
#include "reference/stages.hpp"

namespace moescope::reference {
namespace {

constexpr std::int64_t kTokenBlock = 128;
constexpr std::int64_t kWeightTileBytes =
    4 << 20;  // fp32 rows of W (and as much of V) per chunk: the size of an L3 share

std::int64_t chunk_experts(std::int64_t hidden_size) {
  return std::clamp<std::int64_t>(kWeightTileBytes / (hidden_size * dtype_bytes(Dtype::kF32)), 1, 4096);
}

/// One thread's blocks.
struct BlockScratch {
  MatrixF32 x;  ///< [kTokenBlock, d]
  MatrixF32 s;  ///< [kTokenBlock, chunk] X W^T
  MatrixF32 p;  ///< [kTokenBlock, chunk] gates, then P
};

/// Rows [token_begin, token_end) and columns [expert_begin, expert_end) of the L x N matrix.
struct Block {
  std::int64_t token_begin, token_end, expert_begin, expert_end;
  std::int64_t tokens() const { return token_end - token_begin; }
  std::int64_t experts() const { return expert_end - expert_begin; }
};

/// body(row, col, pair) for the selected pairs inside the block.
template <class Body>
void for_each_pair(const Routing& routing, const Block& block, const Body& body) {
  for (std::int64_t token = block.token_begin; token < block.token_end; ++token) {
    const auto ids = routing.ids_of(token);
    const auto begin = std::lower_bound(ids.begin(), ids.end(), block.expert_begin);
    for (auto id = begin; id != ids.end() && *id < block.expert_end; ++id) {
      body(token - block.token_begin, *id - block.expert_begin,
           static_cast<std::size_t>(routing.token_offsets[static_cast<std::size_t>(token)] +
                                    (id - ids.begin())));
    }
  }
}

void fill_masked(const Routing& routing, const Block& block, std::span<const float> values,
                 MatrixF32Ref target) {
  target.setZero();
  for_each_pair(routing, block,
                [&](auto row, auto col, std::size_t pair) { target(row, col) = values[pair]; });
}

/// Loads each chunk's weights, then calls body(block, scratch, w, v) for its token blocks in parallel. A
/// token block sees the chunks in order and by one thread at a time: deterministic.
template <class Body>
void for_each_block(const LayerInputs& inputs, bool needs_w, bool needs_v, const Body& body) {
  const auto& shape = inputs.shape;
  const auto chunk = std::min(chunk_experts(shape.hidden_size), shape.num_experts());
  const auto token_block = std::min(kTokenBlock, shape.num_tokens);
  MatrixF32 w(needs_w ? chunk : 0, shape.hidden_size);
  MatrixF32 v(needs_v ? chunk : 0, shape.hidden_size);
  const int threads = omp_get_max_threads();
  std::vector<BlockScratch> scratch(static_cast<std::size_t>(threads),
                                    {MatrixF32(token_block, shape.hidden_size), MatrixF32(token_block, chunk),
                                     MatrixF32(token_block, chunk)});
  for (std::int64_t first = 0; first < shape.num_experts(); first += chunk) {
    const auto count = std::min(chunk, shape.num_experts() - first);
    if (needs_w) {
      load_rows(inputs.experts->w_in, first, w.topRows(count));
    }
    if (needs_v) {
      load_rows(inputs.experts->w_out, first, v.topRows(count));
    }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t token = 0; token < shape.num_tokens; token += kTokenBlock) {
      const Block block{token, std::min(token + kTokenBlock, shape.num_tokens), first, first + count};
      body(block, scratch[static_cast<std::size_t>(omp_get_thread_num())], w, v);
    }
  }
}

/// scratch.s = X W^T of the block.
void multiply_scores(const LayerInputs& inputs, const Block& block, const MatrixF32& w,
                     BlockScratch& scratch) {
  auto x = scratch.x.topRows(block.tokens());
  load_rows(inputs.hidden_states, block.token_begin, x);
  scratch.s.topLeftCorner(block.tokens(), block.experts()).noalias() =
      x * w.topRows(block.experts()).transpose();
}

/// Y += P V of the block, P = scratch.p rounded to storage.
void add_combined(const LayerInputs& inputs, const Block& block, const MatrixF32& v, BlockScratch& scratch,
                  HostTensor& out) {
  auto p = scratch.p.topLeftCorner(block.tokens(), block.experts());
  if (rounds_scores(ScheduleKind::kDenseMasked, inputs.shape.dtype)) {
    for (std::int64_t row = 0; row < p.rows(); ++row) {
      round_span({p.row(row).data(), static_cast<std::size_t>(p.cols())}, inputs.shape.dtype);
    }
  }
  const auto y = out.f32();
  MatrixF32Map(y.row(block.token_begin), block.tokens(), y.cols).noalias() += p * v.topRows(block.experts());
}

}  // namespace

std::vector<float> dense_scores(const LayerInputs& inputs, const Routing& routing) {
  std::vector<float> scores(routing.expert_ids.size());
  for_each_block(
      inputs, true, false, [&](const Block& block, BlockScratch& scratch, const MatrixF32& w, const auto&) {
        multiply_scores(inputs, block, w, scratch);
        for_each_pair(routing, block, [&](auto row, auto col, std::size_t pair) {
          scores[pair] = routing.gates[pair] * activate(inputs.shape.activation, scratch.s(row, col));
        });
      });
  return scores;
}

HostTensor dense_combine(const LayerInputs& inputs, const Routing& routing, std::span<const float> scores) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  for_each_block(
      inputs, false, true, [&](const Block& block, BlockScratch& scratch, const auto&, const MatrixF32& v) {
        fill_masked(routing, block, scores, scratch.p.topLeftCorner(block.tokens(), block.experts()));
        add_combined(inputs, block, v, scratch, out);
      });
  return out;
}

HostTensor dense_experts(const LayerInputs& inputs, const Routing& routing) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  for_each_block(inputs, true, true,
                 [&](const Block& block, BlockScratch& scratch, const auto& w, const auto& v) {
                   multiply_scores(inputs, block, w, scratch);
                   auto p = scratch.p.topLeftCorner(block.tokens(), block.experts());
                   fill_masked(routing, block, routing.gates, p);
                   for (std::int64_t row = 0; row < p.rows(); ++row) {
                     for (std::int64_t col = 0; col < p.cols(); ++col) {
                       p(row, col) *= activate(inputs.shape.activation, scratch.s(row, col));
                     }
                   }
                   add_combined(inputs, block, v, scratch, out);
                 });
  return out;
}

std::int64_t dense_workspace_bytes(std::int64_t hidden_size, int threads) {
  const auto chunk = chunk_experts(hidden_size);
  return dtype_bytes(Dtype::kF32) *
         (2 * chunk * hidden_size + threads * kTokenBlock * (hidden_size + 2 * chunk));
}

}  // namespace moescope::reference
