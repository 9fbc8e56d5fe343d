#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/schedule/skew.hpp"
#include "core/workload/trace_file.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// How unevenly each layer of a trace loads its experts.
struct LayerSkew {
  std::string layer;  ///< its number, "-" where it has none
  LayerShape shape;   ///< hidden_size as far as the trace says it, else 0
  SkewMetrics skew;
};
/// `grid_rows` and `grid_cols` as trace_routing() takes them. Throws FileError and InvalidArgument.
std::vector<LayerSkew> skew_of_layers(const ArrayFile& file, const std::string& path,
                                      std::int64_t grid_rows = 0, std::int64_t grid_cols = 0);

/// A row a layer.
Table layer_skew_table(const std::vector<LayerSkew>& layers);

/// "gshard, 4 layers, 8192 tokens, K 8 of 64 experts, gates softmax"
std::string trace_text(const TraceInfo& info);

}  // namespace moescope
