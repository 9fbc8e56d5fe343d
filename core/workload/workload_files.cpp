#include "core/workload/workload_files.hpp"

#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"
#include "core/workload/trace_file.hpp"
#include "core/workload/workload_sources.hpp"

namespace moescope::detail {

std::string metadata_text(const ArrayFile& file, std::string_view path, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end() && file.has(key)) {
    return file.get(path, key).to_text(path, key);
  }
  return found == file.metadata.end() ? std::string() : found->second;
}

std::optional<std::int64_t> metadata_extent(const ArrayFile& file, std::string_view path,
                                            const std::string& key) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const auto refuse = [&](std::string_view text, const std::string& place) {
    throw FileError(path, place, fmt::format("'{}': must be a number in [1, 2^31)", printable(text)));
  };
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) {
    if (!file.has(key)) {
      return std::nullopt;
    }
    // .npz has no metadata: a scalar beside the arrays.
    const auto values = file.get(path, key).to_integers(path, key);
    if (values.size() != 1 || values.front() < 1 || values.front() >= kLimit) {
      refuse(values.size() == 1 ? fmt::to_string(values.front()) : fmt::format("{} numbers", values.size()),
             key);
    }
    return values.front();
  }
  const std::string& text = found->second;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < 1 || value >= kLimit) {
    refuse(text, "__metadata__." + key);
  }
  return value;
}

std::string require_recorded_system(const ArrayFile& file, const WorkloadSpec& spec,
                                    std::string_view wanted) {
  std::string recorded = metadata_text(file, spec.path, "system");
  if (recorded.empty() || recorded == wanted) {
    return recorded;
  }
  if (spec.family == WorkloadSpec::Family::kSnapshot) {
    throw InvalidArgument("system", wanted,
                          fmt::format("{} is a layer of {}", spec.path, printable(recorded)));
  }
  if (!spec.any_system) {
    const char mark = spec.text.find('#') == std::string::npos ? '#' : ',';
    throw InvalidArgument(
        "system", wanted,
        fmt::format("{} was recorded of {}; to run its routing as another system ask for {}{}as=any",
                    spec.path, printable(recorded), spec.text, mark));
  }
  return recorded;
}

std::int64_t fit_extent(std::string_view field, std::int64_t requested, std::int64_t recorded,
                        std::string_view path) {
  if (requested != 0 && requested != recorded) {
    throw InvalidArgument(field, fmt::to_string(requested), fmt::format("{} has {}", path, recorded));
  }
  return recorded;
}

std::int64_t fit_at_most(std::string_view field, std::int64_t requested, std::int64_t recorded,
                         std::string_view path) {
  if (requested > recorded) {
    throw InvalidArgument(field, fmt::to_string(requested),
                          fmt::format("{} has no more than {}", path, recorded));
  }
  return requested == 0 ? recorded : requested;
}

void require_extents(const FileArray& array, std::string_view path, std::string_view name,
                     const std::vector<std::int64_t>& extents, std::string_view meaning) {
  if (array.shape != extents) {
    throw FileError(
        path, name,
        fmt::format("shape {}: must be {} ({})", shape_text(array.shape), shape_text(extents), meaning));
  }
}

void require_matrix(const FileArray& array, std::string_view path, std::string_view name,
                    std::string_view meaning) {
  if (array.shape.size() != 2 || array.shape[0] < 1 || array.shape[1] < 1) {
    throw FileError(path, name,
                    fmt::format("shape {}: must be {}, each at least 1", shape_text(array.shape), meaning));
  }
}

std::string trace_ids_name(const ArrayFile& file) { return file.has("") ? "" : "expert_ids"; }

ArrayFile read_trace(const WorkloadSpec& spec) {
  if (spec.all_layers) {
    throw InvalidArgument("workload", spec.text, "stands for every layer: must be one here, #layer=NUMBER");
  }
  return trace_layer(read_array_file(spec.path), spec.path, spec.layer);
}

namespace {

/// An OmniMoE layer.
ArrayFile read_snapshot(const WorkloadSpec& spec) {
  ArrayFile file = read_safetensors(spec.path);
  require_recorded_system(file, spec, "omnimoe");
  return file;
}

}  // namespace

LayerShape complete_file_shape(const WorkloadSpec& spec, const LayerShape& requested) {
  return spec.family == WorkloadSpec::Family::kSnapshot
             ? complete_snapshot_shape(read_snapshot(spec), spec.path, requested)
             : complete_trace_shape(read_trace(spec), spec, requested);
}

LayerInputs make_from_file(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                           std::shared_ptr<const ExpertWeights> experts) {
  LayerInputs inputs = spec.family == WorkloadSpec::Family::kSnapshot
                           ? make_snapshot(read_snapshot(spec), spec.path, shape, seed, std::move(experts))
                           : make_trace(read_trace(spec), spec, shape, seed, std::move(experts));
  inputs.workload = spec.text;
  inputs.seed = seed;
  return inputs;
}

}  // namespace moescope::detail
