#include "experiments/inspection/trace_layers.hpp"

#include <fmt/format.h>

namespace moescope {

std::vector<LayerSkew> skew_of_layers(const ArrayFile& file, const std::string& path, std::int64_t grid_rows,
                                      std::int64_t grid_cols) {
  const TraceInfo info = trace_info(file, path);
  std::vector<std::optional<std::int64_t>> numbers(info.layers.begin(), info.layers.end());
  if (numbers.empty()) {
    numbers.emplace_back();
  }
  std::vector<LayerSkew> layers;
  for (const std::optional<std::int64_t>& number : numbers) {
    const Routing routing = trace_routing(file, path, number, grid_rows, grid_cols);
    LayerSkew& layer = layers.emplace_back();
    layer.layer = number ? fmt::to_string(*number) : "-";
    layer.shape.num_tokens = routing.num_tokens;
    layer.shape.hidden_size = info.hidden_size;
    layer.shape.grid_rows = routing.grid_rows;
    layer.shape.grid_cols = routing.grid_cols;
    layer.shape.top_k = info.top_k;
    layer.skew = compute_skew(routing);
  }
  return layers;
}

Table layer_skew_table(const std::vector<LayerSkew>& layers) {
  Table table({{"layer"},
               {"tokens"},
               {"K"},
               {"experts"},
               {"active"},
               {"usage"},
               {"unevenness"},
               {"Gini"},
               {"max/mean"},
               {"effective"},
               {"reuse"}});
  for (const LayerSkew& each : layers) {
    const SkewMetrics& skew = each.skew;
    table.add_row({each.layer, fmt::to_string(each.shape.num_tokens), fmt::to_string(each.shape.top_k),
                   fmt::to_string(each.shape.num_experts()), fmt::to_string(skew.active_experts),
                   fmt::format("{:.3f}", skew.usage), fmt::format("{:.4f}", skew.unevenness),
                   fmt::format("{:.3f}", skew.gini), fmt::format("{:.3f}", skew.max_over_mean),
                   fmt::format("{:.1f}", skew.effective_experts), fmt::format("{:.1f}", skew.reuse)});
  }
  return table;
}

std::string trace_text(const TraceInfo& info) {
  std::string text = info.system.empty() ? "system not recorded" : info.system;
  text += fmt::format(", {} layer{}, {} tokens, K {}", info.num_layers(), info.num_layers() == 1 ? "" : "s",
                      info.num_tokens, info.top_k);
  if (info.num_experts != 0) {
    text += fmt::format(" of {} experts", info.num_experts);
  }
  if (info.grid_rows > 1) {
    text += fmt::format(" ({} x {})", info.grid_rows, info.grid_cols);
  }
  return text + (info.has_gates ? fmt::format(", gates{}{}", info.gates.empty() ? "" : " ", info.gates)
                                : ", no gates");
}

}  // namespace moescope
