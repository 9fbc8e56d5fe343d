#include "kernels/training/backward_path.hpp"

#include <fmt/format.h>

#include <limits>

#include "core/base/error.hpp"

namespace moescope::cuda {

bool has_backward_path(const BackwardDesign& design, std::string& why) {
  if (design.options.ranks.several()) {
    why = "the backward runs on one rank";
    return false;
  }
  switch (design.options.kind) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kExpertCentric:
    case ScheduleKind::kDenseMasked:
      break;
    case ScheduleKind::kStaircase:
      if (design.fixed_routing || !experts_staircase_supported(design.shape, design.gpu)) {
        why = "a staircase's backward needs the router's scores, bf16 and compute capability 9.0";
        return false;
      }
      break;
    case ScheduleKind::kSparseLibrary:
      why = "cuSPARSE has no backward of the layer";
      return false;
    case ScheduleKind::kAuto:
      throw InternalError("schedule auto is resolved before a step is prepared");
  }
  if (design.shape.dtype == Dtype::kF32 && design.gradients == Dtype::kBF16) {
    why = "gradients in bf16 need a layer in bf16 on the GPU";
    return false;
  }
  if (design.shape.num_pairs() > std::numeric_limits<std::int32_t>::max()) {
    why = "num_tokens * top_k must be below 2^31 for the backward on the GPU";
    return false;
  }
  return true;
}

std::unique_ptr<BackwardPath> make_backward_path(const BackwardDesign& design) {
  if (std::string why; !has_backward_path(design, why)) {
    throw InvalidArgument("schedule", to_string(design.options), why);
  }
  switch (design.options.kind) {
    case ScheduleKind::kDenseMasked:
      return make_dense_masked_backward(design);
    case ScheduleKind::kStaircase:
      validate_tile_tokens(design.options.tile_tokens);
      return make_strips_backward(design);
    default:
      return make_pairs_backward(design);
  }
}

}  // namespace moescope::cuda
