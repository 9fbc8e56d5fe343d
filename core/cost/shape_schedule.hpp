#pragma once

#include "core/base/gpu_traits.hpp"
#include "core/cost/auto_schedule.hpp"

/// The choice between two schedules where nothing of a layer is known but its shape: in a call of the C
/// interface, which reads nothing back, and which a CUDA graph repeats on other routings.
namespace moescope {

/// What they are chosen by: rates of token_centric and of staircase, fitted to an H200's rows
/// (results/h200/compare-*, 2026-11-30) without chains and selection, whose lengths follow from a routing
/// (data/devices/h200-sxm/rates.json has those with them). Both kernels' times scale alike enough between
/// GPUs for the one question that is asked.
const ScheduleRates& token_centric_rates();
const ScheduleRates& staircase_rates();

/// Strips that cover a token's selection on average: sqrt(K), and never more than a side has. On grids of 16
/// to 1024 squared with Gaussian logits and K up to 16384 it was 0.6 to 1.3 times that.
double expected_strips(const LayerShape& shape);

/// Seconds of the expert stage, all experts equally used. Of staircase with what it costs beside: reading W
/// and V once for their bound (launch_expert_bound), and the second selection of a caller who also wants its
/// pairs (`lists_pairs`).
double expected_token_centric_s(const LayerShape& shape, const GpuTraits& gpu);
double expected_staircase_s(const LayerShape& shape, bool lists_pairs);

/// kTokenCentric or kStaircase, the shorter one. That the second can run is the caller's to see to.
ScheduleKind schedule_of_shape(const LayerShape& shape, const GpuTraits& gpu, bool lists_pairs);

}  // namespace moescope
