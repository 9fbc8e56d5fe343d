#include "core/workload/trace_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"
#include "core/files/project_path.hpp"
#include "core/files/regular_file.hpp"
#include "core/workload/workload.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope {
namespace {

constexpr const char* kLayers = "layers";
constexpr std::string_view kAllLayers = "layer=all";
constexpr std::int64_t kNumberLimit = std::int64_t{1} << 31;

std::int64_t extent_or_0(const ArrayFile& file, std::string_view path, const std::string& key) {
  return detail::metadata_extent(file, path, key).value_or(0);
}

std::int64_t require_number(std::string_view path, std::string_view place, std::int64_t number) {
  if (number < 0 || number >= kNumberLimit) {
    throw FileError(path, place, fmt::format("{}: must be in [0, 2^31)", number));
  }
  return number;
}

/// The numbers of a trace's layers, one for each along the first axis.
std::vector<std::int64_t> layer_numbers(const ArrayFile& file, std::string_view path, const FileArray& ids) {
  if (!file.has(kLayers)) {
    throw FileError(path, "expert_ids",
                    fmt::format("shape {}: without an array 'layers' nothing says which axis is which; "
                                "`moescope import {}` makes a trace of it",
                                detail::shape_text(ids.shape), path));
  }
  const FileArray& array = file.get(path, kLayers);
  detail::require_extents(array, path, kLayers, {ids.shape[0]}, "one for each layer of expert_ids");
  std::vector<std::int64_t> numbers = array.to_integers(path, kLayers);
  std::set<std::int64_t> seen;
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    const std::string place = fmt::format("{}[{}]", kLayers, i);
    if (!seen.insert(require_number(path, place, numbers[i])).second) {
      throw FileError(path, place, fmt::format("{}: stands there twice", numbers[i]));
    }
  }
  return numbers;
}

/// The number that a trace of one layer may say it has.
std::vector<std::int64_t> single_number(const ArrayFile& file, std::string_view path) {
  if (file.has("layer")) {
    const FileArray& array = file.get(path, "layer");
    detail::require_extents(array, path, "layer", {}, "one number");
    return {require_number(path, "layer", array.to_integers(path, "layer").front())};
  }
  const auto text = file.metadata.find("layer");
  if (text == file.metadata.end()) {
    return {};
  }
  const auto number = parse_number<std::int64_t>(text->second);
  if (!number) {
    throw FileError(path, "__metadata__.layer",
                    fmt::format("'{}': must be a number in [0, 2^31)", detail::printable(text->second)));
  }
  return {require_number(path, "__metadata__.layer", *number)};
}

/// The part of an array that belongs to one index of its first axis.
FileArray part_of(const FileArray& array, std::int64_t index) {
  const auto count = static_cast<std::int64_t>(array.bytes.size()) / array.shape.front();
  const auto first = array.bytes.begin() + index * count;
  return {array.dtype, {array.shape.begin() + 1, array.shape.end()}, {first, first + count}};
}

std::string some_of(const std::vector<std::int64_t>& numbers) {
  constexpr std::size_t kMost = 12;
  const auto shown = static_cast<std::ptrdiff_t>(std::min(numbers.size(), kMost));
  return fmt::format("{}{}", fmt::join(numbers.begin(), numbers.begin() + shown, ", "),
                     numbers.size() > kMost ? fmt::format(", ... {} in all", numbers.size()) : "");
}

}  // namespace

TraceInfo trace_info(const ArrayFile& file, std::string_view path) {
  const std::string name = detail::trace_ids_name(file);
  const FileArray& ids = file.get(path, name);
  TraceInfo info;
  if (ids.shape.size() == 3 && std::ranges::min(ids.shape) >= 1) {
    info.layers = layer_numbers(file, path, ids);
  } else {
    detail::require_matrix(ids, path, "expert_ids", "[num_tokens, top_k]");
    info.layers = single_number(file, path);
  }
  info.num_tokens = ids.shape[ids.shape.size() - 2];
  info.top_k = ids.shape.back();
  info.has_gates = file.has("gates");
  if (info.has_gates) {
    detail::require_extents(file.get(path, "gates"), path, "gates", ids.shape, "that of expert_ids");
  }
  info.system = detail::metadata_text(file, path, "system");
  info.gates = detail::metadata_text(file, path, "gate_mode");
  info.num_experts = extent_or_0(file, path, "num_experts");
  info.grid_rows = extent_or_0(file, path, "grid_rows");
  info.grid_cols = extent_or_0(file, path, "grid_cols");
  info.hidden_size = extent_or_0(file, path, "hidden_size");
  info.expert_size = extent_or_0(file, path, "expert_size");
  info.shared_size = extent_or_0(file, path, "shared_size");
  const bool has_grid = info.grid_rows != 0 && info.grid_cols != 0;
  if (has_grid && info.num_experts != 0 && info.grid_rows * info.grid_cols != info.num_experts) {
    throw FileError(path, "num_experts",
                    fmt::format("{}: grid_rows x grid_cols is {} x {}", info.num_experts, info.grid_rows,
                                info.grid_cols));
  }
  return info;
}

ArrayFile trace_layer(const ArrayFile& file, std::string_view path, std::optional<std::int64_t> layer) {
  const TraceInfo info = trace_info(file, path);
  if (!layer && info.num_layers() > 1) {
    throw InvalidArgument("layer", "none",
                          fmt::format("{} holds layers {}: name one, trace:{}#layer={}, or #layer=all", path,
                                      some_of(info.layers), path, info.layers.front()));
  }
  const auto found = layer ? std::ranges::find(info.layers, *layer) : info.layers.begin();
  if (layer && info.layers.empty()) {
    throw InvalidArgument("layer", fmt::to_string(*layer),
                          fmt::format("{} holds one layer without a number: leave #layer out", path));
  }
  if (layer && found == info.layers.end()) {
    throw InvalidArgument("layer", fmt::to_string(*layer),
                          fmt::format("{} holds {}", path, some_of(info.layers)));
  }
  const std::string name = detail::trace_ids_name(file);
  if (file.get(path, name).shape.size() == 2) {
    return file;
  }
  ArrayFile one;
  one.metadata = file.metadata;
  one.unreadable = file.unreadable;
  for (const auto& [key, array] : file.arrays) {
    if (key == name || key == "gates") {
      one.arrays.emplace(key, part_of(array, found - info.layers.begin()));
    } else if (key != kLayers) {
      one.arrays.emplace(key, array);
    }
  }
  return one;
}

Routing trace_routing(const ArrayFile& file, std::string_view path, std::optional<std::int64_t> layer,
                      std::int64_t grid_rows, std::int64_t grid_cols) {
  ArrayFile one = trace_layer(file, path, layer);
  const TraceInfo info = trace_info(one, path);
  LayerShape shape;
  shape.num_tokens = info.num_tokens;
  shape.top_k = info.top_k;
  shape.hidden_size = 1;  // no tensor is made
  if (grid_rows == 0 && grid_cols == 0) {
    const bool flat = info.grid_rows == 0 || info.grid_cols == 0;
    grid_rows = flat ? 1 : info.grid_rows;
    grid_cols = flat ? info.num_experts : info.grid_cols;
  }
  if (grid_rows < 1 || grid_cols < 1) {
    throw InvalidArgument("num_experts", "none",
                          fmt::format("{} does not record it: must be given, as a grid", path));
  }
  shape.grid_rows = grid_rows;
  shape.grid_cols = grid_cols;
  shape.validate();
  if (info.num_experts != 0 && shape.num_experts() != info.num_experts) {
    throw InvalidArgument("grid", fmt::format("{}x{}", grid_rows, grid_cols),
                          fmt::format("{} is of {} experts", path, info.num_experts));
  }
  return detail::take_trace_routing(one, path, shape);
}

std::filesystem::path find_workload_file(const std::string& path) {
  return project_path(path).value_or(path);
}

std::vector<std::string> expand_trace_layers(const std::string& workload) {
  const WorkloadSpec spec = WorkloadSpec::parse(workload);
  if (!spec.all_layers) {
    return {workload};
  }
  const std::filesystem::path file = find_workload_file(spec.path);
  const TraceInfo info = trace_info(read_array_file(file), file.string());
  const auto options = workload.rfind('#');
  const auto word = workload.find(kAllLayers, options);
  std::vector<std::string> workloads;
  for (const std::int64_t number : info.layers) {
    workloads.push_back(workload);
    workloads.back().replace(word, kAllLayers.size(), fmt::format("layer={}", number));
  }
  if (workloads.empty()) {
    throw InvalidArgument("workload", workload,
                          fmt::format("{} holds one layer without a number: leave layer=all out", spec.path));
  }
  return workloads;
}

}  // namespace moescope
