#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"
#include "core/layer/routing.hpp"

/// A file of recorded routing, of one layer or of all layers of a model (docs: the format of traces).
namespace moescope {

/// What a trace says about itself; 0 and empty where it does not.
struct TraceInfo {
  std::string system;  ///< "omnimoe", "gshard", "deepseekmoe", ...
  std::int64_t num_experts = 0;
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  std::vector<std::int64_t> layers;  ///< numbers of its layers in the model; empty: one without a number
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 0;
  bool has_gates = false;
  std::int64_t hidden_size = 0;  ///< of the model it was recorded from, likewise the others
  std::int64_t expert_size = 0;
  std::int64_t shared_size = 0;
  std::string gates;  ///< "softmax", "probability", ...: how its gates came from scores

  std::int64_t num_layers() const { return layers.empty() ? 1 : static_cast<std::int64_t>(layers.size()); }
};

/// Arrays: expert_ids [num_tokens, top_k], or [layers, num_tokens, top_k] beside layers [layers]; gates of
/// the same shape, or none. The rest as integers and texts of no axes (npz) or as metadata (safetensors).
/// Throws FileError naming the array for anything else.
TraceInfo trace_info(const ArrayFile& file, std::string_view path);

/// One layer of the trace: expert_ids and gates are [num_tokens, top_k], the rest as it was. Without a number
/// the trace must hold one layer. Throws InvalidArgument("layer", ...) with those it holds, and FileError.
ArrayFile trace_layer(const ArrayFile& file, std::string_view path, std::optional<std::int64_t> layer);

/// The routing of that layer alone, which needs no hidden states. Grid extents are 0 where the trace is to
/// say them: of a flat router it is a grid of one row. Throws likewise, naming token and position.
Routing trace_routing(const ArrayFile& file, std::string_view path, std::optional<std::int64_t> layer,
                      std::int64_t grid_rows = 0, std::int64_t grid_cols = 0);

/// Where a workload's file lies: `path`, or beside the sources this program was built from when only there
/// is one, so that experiments in the repository run from anywhere.
std::filesystem::path find_workload_file(const std::string& path);

/// "trace:FILE#layer=all" as one workload a layer, "trace:FILE#layer=0", ...; other texts as they are. Throws
/// FileError.
std::vector<std::string> expand_trace_layers(const std::string& workload);

}  // namespace moescope
