#include "profiler/report/row_facts.hpp"

#include <fmt/format.h>

#include "profiler/text/format.hpp"

namespace moescope {

std::string short_shape(const ResultRow& row) {
  return fmt::format("L{} d{} {}x{} K{} {}", row.num_tokens, row.hidden_size, row.grid_rows, row.grid_cols,
                     row.top_k, row.dtype);
}

std::vector<FigureFact> row_facts(const ResultRow& row, const RunHeader& header, double time_s) {
  std::vector<FigureFact> facts;
  const auto add = [&](const char* name, std::string text) {
    if (!text.empty() && text != "none") {
      facts.push_back({name, std::move(text)});
    }
  };
  const bool in_parts = time_s != *row.value;
  add("time", fmt::format("{}{}", format_seconds(time_s), in_parts ? ", scores and combine together" : ""));
  if (row.spread && !in_parts) {
    add("spread", fmt::format("{} of {} samples", format_percent(*row.spread), row.samples));
  }
  add("schedule", row.schedule);
  add("system", row.system);
  add("stage", in_parts ? "experts" : row.stage);
  add("workload", row.workload);
  add("shape", short_shape(row));
  add("shared MLP", row.shared_size ? fmt::to_string(*row.shared_size) : "");
  add("group size", row.group_size ? fmt::to_string(*row.group_size) : "");
  add("tile tokens", row.tile_tokens ? fmt::to_string(*row.tile_tokens) : "");
  add("L2", row.l2_state);
  add("seed", fmt::to_string(row.seed));
  add("source", fmt::format("{}, backend {}", to_string(row.source), row.backend));
  add("reason", row.reason);
  add("device", header.device);
  add("revision", header.git_revision.substr(0, 7) + (header.git_dirty ? "+" : ""));
  add("run", header.run_id);
  add("again", row.repro);
  return facts;
}

}  // namespace moescope
