// Stage experts_dgrad on strips, for sm_90a: the forward's kernel (experts_staircase.cu) with dY in X's place
// and V and W exchanged:
//   U = dY_tile V^T over d; from U, the saved Z and the gates P, Q, H (strips_dgrad_slopes.cuh), rounded to
//   bf16 and stored by entry; sums[tokens] += Q W over all d columns.
// Z and U cannot both be accumulated (2 x 160 registers a thread), so Z is a pass of its own that comes
// before: strips_scores.cu. Q goes to dW as it is: what a token's sums are scaled with is applied as they are
// added.
#include "core/base/error.hpp"
#include "kernels/backward/strips_dgrad_kernel.cuh"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {

StripsPairsLayout strips_pairs_layout(const LayerShape& shape, std::int64_t entries, std::int64_t tiles) {
  shape.validate();
  if (entries < 0 || tiles < 0) {
    throw InvalidArgument(entries < 0 ? "entries" : "tiles", fmt::to_string(std::min(entries, tiles)),
                          "must not be negative");
  }
  const std::int64_t experts = strip_segment_experts(shape.grid_rows, shape.grid_cols);
  StripsPairsLayout layout;
  layout.entries = std::max(entries, std::int64_t{1});
  layout.tiles = std::max(tiles, std::int64_t{1});
  layout.segments = ceil_div(std::max(shape.grid_rows, shape.grid_cols), experts);
  layout.pitch = round_up(layout.segments * experts, std::int64_t{64});
  layout.z_bytes = layout.tiles * layout.segments * kStripTileTokens * experts * 2;
  layout.row_bytes = layout.entries * layout.pitch * 2;
  layout.sum_bytes = layout.entries * layout.segments * 4;
  return layout;
}

StripsDgradArguments strips_dgrad_arguments(const LayerShape& shape, const void* gathered,
                                            DeviceStrips strips, const StripsPairs& pairs) {
  shape.validate();
  if (shape.dtype != Dtype::kBF16) {
    throw InvalidArgument("dtype", to_string(shape.dtype), "the backward on strips takes bf16");
  }
  if (shape.hidden_size % 8 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  StripsDgradArguments args;
  args.strips = {.hidden_states = static_cast<const __nv_bfloat16*>(gathered),
                 .strips = strips,
                 .hidden_size = static_cast<std::int32_t>(shape.hidden_size),
                 .grid_rows = static_cast<std::int32_t>(shape.grid_rows),
                 .grid_cols = static_cast<std::int32_t>(shape.grid_cols),
                 .segments = static_cast<std::int32_t>(pairs.layout.segments),
                 .probability_gates = shape.gate_mode == GateMode::kProbability ? 1 : 0};
  args.z = static_cast<uint4*>(pairs.z);
  args.p = static_cast<__nv_bfloat16*>(pairs.p);
  args.q = static_cast<__nv_bfloat16*>(pairs.q);
  args.h = static_cast<__nv_bfloat16*>(pairs.h);
  args.h_sums = pairs.h_sums;
  args.gate_sums = pairs.gate_sums;
  args.pitch = static_cast<std::int32_t>(pairs.layout.pitch);
  return args;
}

void launch_strips_dgrad(const LayerShape& shape, const void* dy, const DeviceWeights& weights,
                         DeviceStrips strips, StripsPairs pairs, StaircaseOutput dx, cudaStream_t stream) {
  StripsDgradArguments args = strips_dgrad_arguments(shape, dy, strips, pairs);
  const StageRange range(Stage::kExpertsDgrad);
  args.strips.sums = dx.sums;
  args.strips.exponents = dx.exponents;
  if (dx.kind == StaircaseSums::kFp16) {
    launch_strips_dgrad_sums<StaircaseSums::kFp16>(shape, weights, args, pairs.layout.tiles, stream);
  } else {
    launch_strips_dgrad_sums<StaircaseSums::kFixedPoint>(shape, weights, args, pairs.layout.tiles, stream);
  }
}

}  // namespace moescope::cuda
