// Product keys (Lample et al. 2019): N = n^2 experts are scored by 2 n sub-keys.
#include "reference/systems/product_keys.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/matrix.hpp"
#include "reference/stages/router_select.hpp"

namespace moescope::reference {
namespace {

constexpr float kNormEps = 1e-5F;  // torch.nn.LayerNorm's

/// (v - mean) / sqrt(var + eps) * weight + bias.
void layer_norm(std::span<float> v, std::span<const float> weight, std::span<const float> bias) {
  const auto count = static_cast<float>(v.size());
  float mean = 0;
  for (const float value : v) {
    mean += value;
  }
  mean /= count;
  float variance = 0;
  for (const float value : v) {
    variance += (value - mean) * (value - mean);
  }
  const float scale = 1 / std::sqrt(variance / count + kNormEps);
  for (std::size_t i = 0; i < v.size(); ++i) {
    v[i] = (v[i] - mean) * scale * weight[i] + bias[i];
  }
}

/// Columns [first, first + target.cols()) of rows [row, row + target.rows()), widened to fp32.
void load_columns(const HostTensor& source, std::int64_t row, std::int64_t stride, std::int64_t first,
                  MatrixF32& target) {
  with_storage_type(source.dtype(), [&]<class T>(T) {
    const auto view = view_as<T>(source);
    for (std::int64_t r = 0; r < target.rows(); ++r) {
      load_row(view.row(row + r * stride) + first, target.cols(), target.row(r).data());
    }
  });
}

HostTensor half_queries(const SystemInputs& inputs) {
  const auto& shape = inputs.shape;
  const auto& keys = *inputs.weights->keys;
  HostTensor queries = matmul_nt(inputs.hidden_states, keys.queries);
  if (!keys.norm_weight.empty()) {
    const auto view = queries.f32();
    const auto half = static_cast<std::size_t>(shape.key_size);
#pragma omp parallel for
    for (std::int64_t token = 0; token < view.rows; ++token) {
      for (std::size_t first = 0; first < static_cast<std::size_t>(view.cols); first += half) {
        layer_norm(view.row_span(token).subspan(first, half), keys.norm_weight, keys.norm_bias);
      }
    }
  }
  return queries.to(shape.dtype);
}

RouterLogits key_scores(const SystemInputs& inputs, const HostTensor& queries) {
  const auto& shape = inputs.shape;
  const auto n = shape.num_keys();
  RouterLogits scores{HostTensor(Dtype::kF32, shape.num_queries(), n),
                      HostTensor(Dtype::kF32, shape.num_queries(), n)};
#pragma omp parallel for collapse(3) schedule(dynamic)
  for (std::int64_t half = 0; half < 2; ++half) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      for (std::int64_t token = 0; token < shape.num_tokens; token += kKeyBlockTokens) {
        MatrixF32 q(std::min(kKeyBlockTokens, shape.num_tokens - token), shape.key_size);
        MatrixF32 k(n, shape.key_size);
        load_columns(queries, token, 1, (half * shape.heads + head) * shape.key_size, q);
        load_columns(inputs.weights->keys->keys, head * n * 2 + half, 2, 0, k);
        // Rows of this head lie `heads` apart.
        const auto view = (half == 0 ? scores.row : scores.col).f32();
        dot_rows({q.data(), q.rows(), q.cols()}, {k.data(), k.rows(), k.cols()},
                 view.row(token * shape.heads + head), shape.heads * n);
      }
    }
  }
  return scores;
}

}  // namespace

TokenPairs pairs_of_token(const SystemShape& shape, const Routing& routing, std::int64_t token) {
  const auto first = static_cast<std::size_t>(token * shape.top_k);
  const auto count = static_cast<std::size_t>(shape.top_k);
  return {std::span(routing.expert_ids).subspan(first, count),
          std::span(routing.gates).subspan(first, count)};
}

std::vector<StageMemory> ProductKeyExecution::memory() const {
  const auto f32 = dtype_bytes(Dtype::kF32);
  const auto n = shape().num_keys();
  const auto threads = omp_get_max_threads();
  // The projection in fp32 and rounded; then rounded and all scores, with a block of operands per thread.
  const auto queries = shape().num_queries() * 2 * shape().key_size;
  const auto scores = shape().num_queries() * 2 * n * f32;
  const auto blocks = threads * (kKeyBlockTokens + n) * shape().key_size * f32;
  const auto rounded = queries * dtype_bytes(shape().dtype);
  return that_run({{Stage::kRouterProject, rounded + std::max(queries * f32, scores + blocks)},
                   {Stage::kRouterSelect, scores + threads * 2 * n * 5 * f32}});
}

void ProductKeyExecution::compute(Stage stage) {
  switch (stage) {
    case Stage::kRouterProject:
      logits_ = key_scores(inputs_, half_queries(inputs_));
      break;
    case Stage::kRouterSelect:
      routing_ = select_rows(logits_, shape().top_k_per_query(), shape().gate_mode, Marginals::kAsGiven);
      logits_ = {};
      break;
    default:
      throw InternalError(fmt::format("{} has no stage {}", to_string(shape().system), to_string(stage)));
  }
}

}  // namespace moescope::reference
