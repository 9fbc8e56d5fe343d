// snapshot:FILE for FFN experts: a trained layer with the tokens it saw. Arrays: hidden_states [L,d],
// router.weight [N,d], experts.gate_up [N,2f,d] (an expert's gate rows, then its up rows) with experts.down
// [N,d,f] or neither, shared.gate/up/down.weight or none. Metadata: system, top_k, and optional activation,
// gates. dense_mlp takes the tokens alone.
#include <fmt/format.h>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/systems/system_making.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope::detail {
namespace {

bool has_experts(const ArrayFile& file, std::string_view path) {
  return has_group(file, path, {"experts.gate_up", "experts.down"});
}

void require_snapshots(const SystemShape& shape, const WorkloadSpec& spec) {
  if (!traits_of(shape.system).snapshots) {
    throw InvalidArgument("workload", spec.text,
                          fmt::format("no snapshot holds a layer of {}", to_string(shape.system)));
  }
}

/// Every extent that the file states, against the others.
SystemShape recorded_shape(const ArrayFile& file, std::string_view path, System system) {
  const FileArray& hidden_states = file.get(path, "hidden_states");
  require_matrix(hidden_states, path, "hidden_states", "[num_tokens, hidden_size]");
  SystemShape shape;
  shape.system = system;
  shape.num_tokens = hidden_states.shape[0];
  shape.hidden_size = hidden_states.shape[1];
  if (!shape.has_routing()) {
    return shape;
  }
  const std::int64_t d = shape.hidden_size;
  const FileArray& router = file.get(path, "router.weight");
  require_matrix(router, path, "router.weight", "[num_experts, hidden_size]");
  shape.num_experts = router.shape[0];
  require_extents(router, path, "router.weight", {shape.num_experts, d}, "num_experts x hidden_size");
  if (file.has("router.bias")) {
    throw FileError(path, "router.bias", "routers of FFN experts with a bias are not supported");
  }
  shape.top_k = required_extent(file, path, "top_k");
  if (shape.top_k > shape.num_experts) {
    throw FileError(path, "__metadata__.top_k",
                    fmt::format("{}: must not exceed num_experts = {}", shape.top_k, shape.num_experts));
  }
  if (has_experts(file, path)) {
    const FileArray& down = file.get(path, "experts.down");
    if (down.shape.size() != 3 || down.shape[2] < 1) {
      throw FileError(
          path, "experts.down",
          fmt::format("shape {}: must be [num_experts, hidden_size, expert_size]", shape_text(down.shape)));
    }
    shape.expert_size = down.shape[2];
    const std::int64_t f = shape.expert_size;
    require_extents(down, path, "experts.down", {shape.num_experts, d, f},
                    "num_experts x hidden_size x expert_size");
    require_extents(file.get(path, "experts.gate_up"), path, "experts.gate_up", {shape.num_experts, 2 * f, d},
                    "num_experts x 2 expert_size x hidden_size");
  }
  shape.shared_size = recorded_shared_size(file, path, d);
  return shape;
}

}  // namespace

SystemShape complete_system_snapshot(const ArrayFile& file, const WorkloadSpec& spec,
                                     const SystemShape& requested) {
  require_snapshots(requested, spec);
  const std::string_view path = spec.path;
  SystemShape shape = requested;
  if (shape.has_routing()) {
    require_recorded_system(file, spec, to_string(shape.system));
    if (file.has("router.row.weight")) {  // snapshots of omnimoe need not say so
      throw InvalidArgument("system", to_string(shape.system), fmt::format("{} is a layer of omnimoe", path));
    }
    require_recorded_options(file, path, requested.activation, requested.gate_mode);
  }
  const SystemShape recorded = recorded_shape(file, path, shape.system);
  shape.num_tokens = fit_at_most("num_tokens", requested.num_tokens, recorded.num_tokens, path);
  shape.hidden_size = fit_extent("hidden_size", requested.hidden_size, recorded.hidden_size, path);
  if (shape.has_routing()) {
    shape.num_experts = fit_extent("num_experts", requested.num_experts, recorded.num_experts, path);
    shape.top_k = requested.top_k == 0 ? recorded.top_k : requested.top_k;
    // A file without experts gets made-up ones: of the width asked for, else of the small preset's.
    if (recorded.expert_size != 0) {
      shape.expert_size = fit_extent("expert_size", requested.expert_size, recorded.expert_size, path);
    } else if (shape.expert_size == 0 && shape.has_ffn_experts()) {
      shape.expert_size = find_system_preset(shape.system, "small").shape.expert_size;
    }
    if (recorded.shared_size != 0) {
      shape.shared_size = fit_extent("shared_size", requested.shared_size, recorded.shared_size, path);
    }
  }
  shape.validate();
  return shape;
}

SystemInputs make_system_snapshot(ArrayFile file, const WorkloadSpec& spec, const SystemShape& requested,
                                  std::uint64_t seed) {
  const std::string_view path = spec.path;
  SystemInputs inputs;
  inputs.shape = complete_system_snapshot(file, spec, requested);
  const SystemShape& shape = inputs.shape;
  require_system_memory(shape);
  inputs.hidden_states = take_tensor(file, path, "hidden_states", shape.dtype);
  if (inputs.hidden_states.rows() > shape.num_tokens) {
    inputs.hidden_states = inputs.hidden_states.slice_rows(0, shape.num_tokens);
  }
  // Made up from the seed where the file does not have them.
  const bool routed = shape.has_routing();
  const bool with_experts = routed && has_experts(file, path);
  const bool with_shared = routed && recorded_shared_size(file, path, shape.hidden_size) > 0;
  auto weights = std::make_shared<SystemWeights>();
  if (!with_experts || (shape.shared_size > 0 && !with_shared)) {
    weights = make_system_weights(shape, 1, seed);
  }
  if (routed) {
    weights->router = take_tensor(file, path, "router.weight", shape.dtype);
  }
  if (with_experts) {
    // [N, rows, cols] folds to [N * rows, cols].
    weights->experts = FfnExpertWeights{take_tensor(file, path, "experts.gate_up", shape.dtype),
                                        take_tensor(file, path, "experts.down", shape.dtype)};
  }
  if (with_shared) {
    weights->shared = take_shared(file, path, shape.dtype);
  }
  inputs.weights = std::move(weights);
  return inputs;
}

}  // namespace moescope::detail
