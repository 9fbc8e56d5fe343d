#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/report/recorded_points.hpp"

/// What tells recorded layers and runs apart, in words: one rule for tables, pages and figures.
namespace moescope {

/// One thing in which layers may differ, and its value as text; empty where a layer has none.
struct LayerAxis {
  std::string_view name;  ///< "seed", "B", "device", ...
  std::string value;
  /// "seed 2", "L2 cold", "gelu"; empty without a value.
  std::string text;
};

/// Every axis of a layer, always the same ones in the same order. Two layers whose values are all equal are
/// the same layer, recorded by the same run.
std::vector<LayerAxis> layer_axes(const RecordedLayer& layer);

/// Adds to names that several have the axes in which those differ, but for axes that are `without`.
void tell_apart(std::vector<std::string>& names, std::span<const std::vector<LayerAxis>> axes,
                std::initializer_list<std::string_view> without);

/// "tablea_layer2" of snapshot:some/where/tablea_layer2.safetensors; other workloads as they are.
std::string short_workload(const std::string& workload);

/// A name for each layer: workload, shape, dtype, L2, activation, and every axis in which those differ that
/// would be called the same without; the run where nothing else differs.
std::vector<std::string> layer_names(std::span<const RecordedLayer> layers);

/// For each run what tells it from the others: device, revision and day as far as they differ, and the id
/// where these do not do. Empty for a single one.
std::vector<std::string> run_names(std::span<const RunHeader* const> headers);

}  // namespace moescope
