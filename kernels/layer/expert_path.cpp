#include "kernels/layer/expert_path.hpp"

#include "core/base/error.hpp"

namespace moescope::cuda {
namespace {

/// staircase straight from the router's scores, where these are there and the kernel runs.
bool runs_on_strips(const LayerDesign& design) {
  return design.options.kind == ScheduleKind::kStaircase && !design.fixed_routing &&
         experts_staircase_supported(design.shape, design.gpu);
}

}  // namespace

void ExpertPath::finish(cudaStream_t stream) {
  if (shape().dtype == Dtype::kBF16) {
    launch_round_output(shape(), data_.y(), data_.shared_result, data_.rounded, stream);
  } else if (data_.shared_result != nullptr) {
    launch_round_output(shape(), data_.y(), data_.shared_result, data_.y(), stream);
  }
}

std::string ExpertPath::finish_name() const {
  return shape().dtype == Dtype::kBF16 || shape().shared_size > 0 ? " + round_output" : "";
}

Schedule ExpertPath::schedule(cudaStream_t /*stream*/) const {
  throw InternalError("this path builds no schedule");
}
std::vector<float> ExpertPath::scores(cudaStream_t /*stream*/) const {
  throw InternalError("this path keeps no scores");
}
void ExpertPath::set_scores(const std::vector<float>& /*scores*/, cudaStream_t /*stream*/) {
  throw InternalError("this path keeps no scores");
}

bool has_expert_path(const LayerDesign& design, std::string& why) {
  if (design.options.kind == ScheduleKind::kStaircase && design.options.strip_rule == StripRule::kRowsOnly &&
      !runs_on_strips(design)) {
    why = "rows alone need the router's scores, bf16 and compute capability 9.0";
    return false;
  }
  return true;
}

std::unique_ptr<ExpertPath> make_expert_path(const LayerDesign& design) {
  if (std::string why; !has_expert_path(design, why)) {
    throw InvalidArgument("schedule", to_string(design.options), why);
  }
  switch (design.options.kind) {
    case ScheduleKind::kTokenCentric:
      return make_token_centric_path(design);
    case ScheduleKind::kExpertCentric:
      return make_tiles_path(design);
    case ScheduleKind::kStaircase:
      validate_tile_tokens(design.options.tile_tokens);
      return runs_on_strips(design) ? make_strips_path(design) : make_tiles_path(design);
    case ScheduleKind::kDenseMasked:
      return make_dense_masked_path(design);
    case ScheduleKind::kSparseLibrary:
      return make_sparse_library_path(design);
    case ScheduleKind::kAuto:
      break;
  }
  throw InternalError("schedule auto is resolved before a layer is prepared");
}

}  // namespace moescope::cuda
