#include "reference/systems/host_needs.hpp"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "reference/stages/cpu_execution.hpp"
#include "reference/stages/dense_masked.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/systems/ffn_experts.hpp"
#include "reference/systems/product_keys.hpp"

namespace moescope {
namespace {

constexpr double kF32 = sizeof(float);
/// What glibc's heap may keep of what was given back: it trims above twice its largest mmap threshold, 32
/// MiB.
constexpr double kHeapKept = 64 << 20;

double real(std::int64_t count) { return static_cast<double>(count); }

/// Candidates of one token's selection: K / 1 + K / 2 + ... columns, row by row.
double candidates(const LayerShape& shape) {
  const double top_k = real(shape.top_k);
  const double rows = std::min(top_k, real(shape.grid_rows));
  const double cols = std::min(top_k, real(shape.grid_cols));
  return std::min(rows * cols, top_k * (1 + std::log(rows)));
}

/// Hidden activations, their rounded copy, the product; beside the sum that it is added to.
double shared_mlp_bytes(const LayerShape& shape, int threads) {
  if (shape.shared_size == 0) {
    return 0;
  }
  const double hidden = real(shape.num_tokens) * real(shape.shared_size);
  const double rounded = hidden * real(dtype_bytes(shape.dtype));
  const double sums = real(shape.num_tokens) * real(shape.hidden_size) * kF32;
  return std::max({2 * hidden * kF32, hidden * kF32 + rounded, rounded + sums}) +
         (threads + 1) * reference::matmul_scratch_bytes(std::max(shape.hidden_size, shape.shared_size));
}

}  // namespace

HostNeeds cpu_router_needs(const LayerShape& shape) {
  const double threads = omp_get_max_threads();
  const double logits = real(shape.num_tokens) * (real(shape.grid_rows) + real(shape.grid_cols)) * kF32;
  const double selector =
      kF32 * (2 * real(shape.grid_rows) + 6 * real(shape.grid_cols) + real(shape.top_k) + candidates(shape));
  const double products = threads * reference::scores_scratch_bytes(shape.hidden_size);
  // Of the run before, given back by then. Without it the sum lies below the peak; supposed: the heap keeps
  // its place.
  return {routing_host_bytes(shape),
          routing_host_bytes(shape) + logits + std::max((threads + 1) * selector, products)};
}

HostNeeds cpu_execution_needs(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options) {
  const int threads = omp_get_max_threads();
  const double tokens = real(shape.num_tokens);
  const double width = real(shape.hidden_size);
  const double element = real(dtype_bytes(shape.dtype));
  const double pairs = tokens * real(shape.top_k);
  const HostNeeds router = cpu_router_needs(shape);
  const HostNeeds schedule = schedule_host_needs(shape, fixed_routing, options, threads);
  const double sums = tokens * width * kF32;
  const double tasks = threads * kF32 * (width + real(shape.top_k)) * 2;
  const bool apart = !is_fused(options.kind);  // auto may choose either
  const double experts =
      sums + (apart ? pairs * kF32 + real(reference::dense_workspace_bytes(shape, threads + 1)) : tasks);
  const double shared = sums + shared_mlp_bytes(shape, threads);
  const double again = schedule.kept;  // likewise, of the run before
  // What auto chose by and the lists of every candidate are given back, and leave holes that the layer does
  // not fit.
  const double chosen = options.kind == ScheduleKind::kAuto ? 2 * routing_host_bytes(shape) : 0;
  return {(fixed_routing ? 0 : router.kept) + chosen + schedule.kept + tokens * width * element,
          std::max({fixed_routing ? 0 : router.passing, schedule.passing + again, experts, shared})};
}

double cpu_training_bytes(const LayerShape& shape, bool fixed_routing, const ScheduleOptions& options,
                          Dtype gradients) {
  const HostNeeds forward = cpu_execution_needs(shape, fixed_routing, options);
  const double sides = real(shape.grid_rows) + real(shape.grid_cols);
  const double parameters =
      (2 * real(shape.num_experts()) + sides + 3 * real(shape.shared_size)) * real(shape.hidden_size);
  const double tokens = real(shape.num_tokens);
  // p, q, the gates' gradients and z, and the pairs by expert with their tokens.
  const double pairs = tokens * real(shape.top_k) * (4 * kF32 + 12) + 16 * real(shape.num_experts());
  // Log-probabilities and gradients, before and behind a batch norm, and as operands.
  const double logits = 5 * tokens * sides * kF32;
  const double hidden = tokens * real(shape.shared_size) * 4 * kF32;
  return forward.kept + forward.passing + parameters * (real(dtype_bytes(gradients)) + kF32) + pairs +
         logits + hidden + 3 * tokens * real(shape.hidden_size) * kF32;
}

HostNeeds cpu_system_needs(const SystemShape& shape, bool fixed_routing, const TokenRule& tokens) {
  const int threads = omp_get_max_threads();
  const double width = real(shape.hidden_size);
  const double element = real(dtype_bytes(shape.dtype));
  const double sums = real(shape.num_tokens) * width * kF32;
  HostNeeds needs{real(shape.num_tokens) * width * element,
                  sums + shared_mlp_bytes(shape.row_shape(), threads)};
  if (!shape.has_routing()) {
    return needs;
  }
  const LayerShape queries = shape.query_shape();
  HostNeeds router = cpu_router_needs(queries);
  router.passing = fixed_routing ? 0 : router.passing;
  needs.kept += router.kept;
  if (shape.has_product_keys() && fixed_routing) {
    return needs;
  }
  if (shape.has_product_keys()) {
    const double projected = real(shape.num_queries()) * 2 * real(shape.key_size);
    needs.passing = std::max(
        {needs.passing,
         projected * (kF32 + element) + (threads + 1) * reference::matmul_scratch_bytes(shape.hidden_size),
         projected * element + router.passing +
             threads * (reference::kKeyBlockTokens + real(shape.num_keys())) * real(shape.key_size) * kF32});
    return needs;
  }
  const ScheduleOptions by_expert{.kind = ScheduleKind::kExpertCentric, .group_size = 1};
  const HostNeeds permutation = schedule_host_needs(queries, false, by_expert, threads);
  double pairs = real(queries.num_tokens) * real(queries.top_k);
  if (needs_probabilities(tokens)) {  // and what fills tiles
    const double all = real(shape.num_tokens) * real(shape.num_experts);
    pairs = std::min(pairs + real(shape.num_experts) * real(tokens.tile), all);
    needs.passing = std::max(needs.passing, 2 * all * kF32);
  }
  const double f = real(shape.expert_size);
  const double block = kF32 * (reference::kFfnBlockTokens * 2 * (width + f) + 3 * f * width);
  needs.kept += permutation.kept;
  needs.passing = std::max(
      {needs.passing, router.passing, permutation.passing, pairs * width * kF32 + sums + threads * block});
  return needs;
}

double with_cold_runs(double passing) {
  return std::max(passing, real(reference::kFlushBytes)) + std::min(1.5 * passing, kHeapKept);
}

double oracle_host_bytes(const LayerShape& shape, std::int64_t sampled_tokens) {
  const double tokens = real(std::min(shape.num_tokens, sampled_tokens));
  const double sides = real(shape.grid_rows) + real(shape.grid_cols);
  const double width = real(shape.hidden_size);
  const double top_k = real(shape.top_k);
  // Marginals beside their growing copy, outputs and what they are held against, pairs.
  const double sampled = tokens * sizeof(double) * (3 * sides + 4 * width + 6 * top_k);
  const double threads = omp_get_max_threads();
  const double each = threads * sizeof(double) * (8 * width + 6 * real(shape.shared_size) + 4 * top_k);
  return sampled + each + routing_host_bytes(shape) +
         real(shape.num_tokens) * width * real(dtype_bytes(shape.dtype));
}

}  // namespace moescope
