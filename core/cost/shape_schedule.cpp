#include "core/cost/shape_schedule.hpp"

#include <algorithm>
#include <cmath>

#include "core/tiling/strip_tiles.hpp"
#include "core/tiling/tile_config.hpp"

namespace moescope {
namespace {

double bytes_of_rows(const LayerShape& shape, double rows) {
  return rows * static_cast<double>(shape.hidden_size * dtype_bytes(shape.dtype));
}

}  // namespace

const ScheduleRates& token_centric_rates() {
  static const ScheduleRates rates = {.schedule = {.kind = ScheduleKind::kTokenCentric},
                                      .fixed_s = 1.09e-5,
                                      .memory_bytes_per_s = 4.85e12,
                                      .cache_bytes_per_s = 9.54e12,
                                      .flop_per_s = 1e15,
                                      .reuse_is_near = false};
  return rates;
}

const ScheduleRates& staircase_rates() {
  static const ScheduleRates rates = {.schedule = {.kind = ScheduleKind::kStaircase},
                                      .fixed_s = 4.48e-5,
                                      .memory_bytes_per_s = 4.85e12,
                                      .cache_bytes_per_s = 4.58e12,
                                      .flop_per_s = 3.6e14,
                                      .executes_masked = true};
  return rates;
}

double expected_strips(const LayerShape& shape) {
  return std::min(std::sqrt(static_cast<double>(shape.top_k)),
                  static_cast<double>(std::min(shape.grid_rows, shape.grid_cols)));
}

double expected_token_centric_s(const LayerShape& shape, const GpuTraits& gpu) {
  const auto pairs = static_cast<double>(shape.num_pairs());
  const auto experts = static_cast<double>(shape.num_experts());
  const double needed = bytes_of_rows(shape, 2 * std::min(pairs, experts));
  const double requested = bytes_of_rows(shape, 2 * pairs);
  // As schedule_work() has it: a row that comes back is in the cache as far as that holds all of them.
  const double held = static_cast<double>(gpu.l2_bytes) / bytes_of_rows(shape, 2 * experts);
  const ScheduleWork work{.memory_bytes = needed + std::max(1 - held, 0.0) * (requested - needed),
                          .requested_bytes = requested,
                          .flop = 4 * pairs * static_cast<double>(shape.hidden_size)};
  return work.predicted_s(token_centric_rates());
}

double expected_staircase_s(const LayerShape& shape, bool lists_pairs) {
  const auto tokens = static_cast<double>(shape.num_tokens);
  const auto experts = static_cast<double>(shape.num_experts());
  const double gathered = tokens * expected_strips(shape);
  const double strips = std::min(gathered, static_cast<double>(shape.grid_rows + shape.grid_cols));
  // A strip is multiplied in whole segments, and W and V are read for each strip in use.
  const std::int64_t segment = strip_segment_experts(shape.grid_rows, shape.grid_cols);
  const auto length = static_cast<double>(round_up(std::max(shape.grid_rows, shape.grid_cols), segment));
  constexpr double kSumBytes = 8;  // a fixed-point sum, read and written
  const ScheduleWork work{.memory_bytes = bytes_of_rows(shape, 2 * experts),
                          .requested_bytes = bytes_of_rows(shape, 2 * strips * length + gathered) +
                                             kSumBytes * gathered * static_cast<double>(shape.hidden_size),
                          .flop = 4 * gathered * length * static_cast<double>(shape.hidden_size)};
  const double bound_s = bytes_of_rows(shape, 2 * experts) / staircase_rates().memory_bytes_per_s;
  // router_select_strips and its list, measured on an H200 at 64 to 16384 tokens, K = 512
  // (docs/performance/).
  constexpr double kSelectFixed = 2e-5;
  constexpr double kSelectToken = 1.1e-8;
  const double select_s = lists_pairs ? kSelectFixed + kSelectToken * tokens : 0;
  return work.predicted_s(staircase_rates()) + bound_s + select_s;
}

ScheduleKind schedule_of_shape(const LayerShape& shape, const GpuTraits& gpu, bool lists_pairs) {
  return expected_staircase_s(shape, lists_pairs) < expected_token_centric_s(shape, gpu)
             ? ScheduleKind::kStaircase
             : ScheduleKind::kTokenCentric;
}

}  // namespace moescope
