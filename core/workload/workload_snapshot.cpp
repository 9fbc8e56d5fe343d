// snapshot:FILE - a trained layer with the tokens it saw, in safetensors (docs/guide/your-model.md).
#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/workload/workload.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope::detail {

std::int64_t required_extent(const ArrayFile& file, std::string_view path, const std::string& key) {
  const auto value = metadata_extent(file, path, key);
  if (!value) {
    throw FileError(path, "__metadata__." + key, "missing");
  }
  return *value;
}

bool has_group(const ArrayFile& file, std::string_view path, const std::vector<std::string>& names) {
  const auto present = [&](const std::string& name) { return file.has(name); };
  std::size_t count = 0;
  for (const std::string& name : names) {
    count += present(name) ? 1 : 0;
  }
  if (count != 0 && count != names.size()) {
    for (const std::string& name : names) {
      (void)file.get(path, name);  // throws for the one that is missing
    }
  }
  return count != 0;
}

namespace {

bool has_bias(const ArrayFile& file, std::string_view path) {
  return has_group(file, path, {"router.row.bias", "router.col.bias"});
}
bool has_experts(const ArrayFile& file, std::string_view path) {
  return has_group(file, path, {"experts.w_in", "experts.w_out"});
}
bool has_shared(const ArrayFile& file, std::string_view path) {
  return has_group(file, path, {"shared.gate.weight", "shared.up.weight", "shared.down.weight"});
}

}  // namespace

void require_recorded_options(const ArrayFile& file, std::string_view path, Activation activation,
                              GateMode gate_mode) {
  const auto check = [&](const std::string& key, std::string_view field, std::string_view wanted,
                         auto parse) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) {
      return;
    }
    const std::string word =
        found->second.substr(0, found->second.find(' '));  // "softmax over the selected scores"
    try {
      parse(word);
    } catch (const InvalidArgument& error) {
      throw FileError(path, "__metadata__." + key, printable(error.what()));
    }
    if (word != wanted) {
      throw InvalidArgument(field, wanted, fmt::format("{} was recorded with {}", path, word));
    }
  };
  check("activation", "activation", to_string(activation), parse_activation);
  check("gates", "gate_mode", to_string(gate_mode), parse_gate_mode);
}

std::int64_t recorded_shared_size(const ArrayFile& file, std::string_view path, std::int64_t hidden_size) {
  if (!has_shared(file, path)) {
    return 0;
  }
  const FileArray& gate = file.get(path, "shared.gate.weight");
  require_matrix(gate, path, "shared.gate.weight", "[shared_size, hidden_size]");
  const std::int64_t width = gate.shape[0];
  const auto require = [&](const char* name, const std::vector<std::int64_t>& extents,
                           std::string_view meaning) {
    require_extents(file.get(path, name), path, name, extents, meaning);
  };
  require("shared.gate.weight", {width, hidden_size}, "shared_size x hidden_size");
  require("shared.up.weight", {width, hidden_size}, "shared_size x hidden_size");
  require("shared.down.weight", {hidden_size, width}, "hidden_size x shared_size");
  return width;
}

SharedMlpWeights take_shared(ArrayFile& file, std::string_view path, Dtype dtype) {
  return {take_tensor(file, path, "shared.gate.weight", dtype),
          take_tensor(file, path, "shared.up.weight", dtype),
          take_tensor(file, path, "shared.down.weight", dtype)};
}

namespace {

/// Every extent the file states, against the others.
LayerShape recorded_shape(const ArrayFile& file, std::string_view path) {
  const FileArray& hidden_states = file.get(path, "hidden_states");
  require_matrix(hidden_states, path, "hidden_states", "[num_tokens, hidden_size]");
  LayerShape shape;
  shape.num_tokens = hidden_states.shape[0];
  shape.hidden_size = hidden_states.shape[1];
  shape.grid_rows = required_extent(file, path, "grid_rows");
  shape.grid_cols = required_extent(file, path, "grid_cols");
  shape.top_k = required_extent(file, path, "top_k");
  shape.shared_size = 0;
  if (shape.top_k > shape.num_experts()) {
    throw FileError(
        path, "__metadata__.top_k",
        fmt::format("{}: must not exceed grid_rows * grid_cols = {}", shape.top_k, shape.num_experts()));
  }
  const auto require = [&](const std::string& name, const std::vector<std::int64_t>& extents,
                           std::string_view meaning) {
    require_extents(file.get(path, name), path, name, extents, meaning);
  };
  const std::int64_t d = shape.hidden_size;
  require("router.row.weight", {shape.grid_rows, d}, "grid_rows x hidden_size");
  require("router.col.weight", {shape.grid_cols, d}, "grid_cols x hidden_size");
  if (has_bias(file, path)) {
    require("router.row.bias", {shape.grid_rows}, "grid_rows");
    require("router.col.bias", {shape.grid_cols}, "grid_cols");
  }
  if (has_experts(file, path)) {
    require("experts.w_in", {shape.num_experts(), d}, "grid_rows * grid_cols x hidden_size");
    require("experts.w_out", {shape.num_experts(), d}, "grid_rows * grid_cols x hidden_size");
  }
  shape.shared_size = recorded_shared_size(file, path, d);
  return shape;
}

[[noreturn]] void refuse_value(std::string_view path, const std::string& place, float value, Dtype dtype) {
  throw FileError(path, place, fmt::format("{} as {}: must be finite", value, to_string(dtype)));
}

void require_finite(const HostTensor& tensor, std::string_view path, const std::string& name) {
  const auto scan = [&](auto view) {
    for (std::int64_t i = 0; i < view.size(); ++i) {
      if (const float value = to_float(view.data[i]); !std::isfinite(value)) {
        refuse_value(path, fmt::format("{}[{}, {}]", name, i / view.cols, i % view.cols), value,
                     tensor.dtype());
      }
    }
  };
  if (tensor.dtype() == Dtype::kF32) {
    scan(tensor.f32());
  } else {
    scan(tensor.bf16());
  }
}

}  // namespace

HostTensor take_tensor(ArrayFile& file, std::string_view path, const std::string& name, Dtype dtype) {
  HostTensor tensor = file.get(path, name).to_tensor(dtype, path, name);
  file.arrays.erase(name);
  require_finite(tensor, path, name);
  return tensor;
}

namespace {

std::vector<float> bias(const ArrayFile& file, std::string_view path, const std::string& name) {
  std::vector<float> values = file.get(path, name).to_floats(path, name);
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      refuse_value(path, fmt::format("{}[{}]", name, i), values[i], Dtype::kF32);
    }
  }
  return values;
}

/// The file's weights where it has them; what it lacks is made up from the seed.
std::shared_ptr<const ExpertWeights> take_experts(ArrayFile& file, std::string_view path,
                                                  const LayerShape& shape, std::uint64_t seed) {
  const bool recorded_shared = has_shared(file, path);
  if (!has_experts(file, path) && !recorded_shared) {
    return make_expert_weights(shape, seed);
  }
  auto weights = std::make_shared<ExpertWeights>();
  if (has_experts(file, path)) {
    weights->w_in = take_tensor(file, path, "experts.w_in", shape.dtype);
    weights->w_out = take_tensor(file, path, "experts.w_out", shape.dtype);
  } else {
    LayerShape routed_only = shape;
    routed_only.shared_size = 0;
    const auto made = make_expert_weights(routed_only, seed);
    weights->w_in = made->w_in.clone();
    weights->w_out = made->w_out.clone();
  }
  if (recorded_shared) {
    weights->shared.emplace(take_shared(file, path, shape.dtype));
  }
  return weights;
}

}  // namespace

LayerShape complete_snapshot_shape(const ArrayFile& file, std::string_view path,
                                   const LayerShape& requested) {
  const LayerShape recorded = recorded_shape(file, path);
  require_recorded_options(file, path, requested.activation, requested.gate_mode);
  LayerShape shape = requested;
  shape.num_tokens = fit_at_most("num_tokens", requested.num_tokens, recorded.num_tokens, path);
  shape.hidden_size = fit_extent("hidden_size", requested.hidden_size, recorded.hidden_size, path);
  shape.grid_rows = fit_extent("grid_rows", requested.grid_rows, recorded.grid_rows, path);
  shape.grid_cols = fit_extent("grid_cols", requested.grid_cols, recorded.grid_cols, path);
  shape.top_k = requested.top_k == 0 ? recorded.top_k : requested.top_k;
  // A file without expert weights gets made-up ones, with a shared MLP of any width; one with them is what it
  // is.
  if (has_shared(file, path) || has_experts(file, path)) {
    shape.shared_size = fit_extent("shared_size", requested.shared_size, recorded.shared_size, path);
  }
  shape.validate();
  return shape;
}

LayerInputs make_snapshot(ArrayFile file, std::string_view path, const LayerShape& requested,
                          std::uint64_t seed, std::shared_ptr<const ExpertWeights> experts) {
  LayerInputs inputs;
  inputs.shape = complete_snapshot_shape(file, path, requested);
  if (has_bias(file, path)) {
    inputs.router.row_bias = bias(file, path, "router.row.bias");
    inputs.router.col_bias = bias(file, path, "router.col.bias");
  }
  inputs.router.row = take_tensor(file, path, "router.row.weight", inputs.shape.dtype);
  inputs.router.col = take_tensor(file, path, "router.col.weight", inputs.shape.dtype);
  inputs.hidden_states = take_tensor(file, path, "hidden_states", inputs.shape.dtype);
  if (inputs.hidden_states.rows() > inputs.shape.num_tokens) {
    inputs.hidden_states = inputs.hidden_states.slice_rows(0, inputs.shape.num_tokens);
  }
  if (experts) {
    if (has_shared(file, path)) {  // the width came from the file's shared MLP, which is not used
      inputs.shape.shared_size = experts->shared ? experts->shared->gate.rows() : 0;
    }
    inputs.experts = std::move(experts);
  } else {
    inputs.experts = take_experts(file, path, inputs.shape, seed);
  }
  inputs.validate();
  return inputs;
}

}  // namespace moescope::detail
