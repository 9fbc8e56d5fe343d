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
      why = "there are no kernels for a staircase's backward; token_centric and dense_masked have theirs";
      return false;
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
  return design.options.kind == ScheduleKind::kDenseMasked ? make_dense_masked_backward(design)
                                                           : make_pairs_backward(design);
}

}  // namespace moescope::cuda
