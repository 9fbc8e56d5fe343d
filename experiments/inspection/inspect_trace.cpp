#include "experiments/inspection/inspect_trace.hpp"

#include <fmt/format.h>

#include "core/base/grid_text.hpp"
#include "core/files/npy.hpp"
#include "core/workload/trace_file.hpp"
#include "experiments/inspection/trace_layers.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/outputs.hpp"
#include "profiler/study/layer_rows.hpp"

namespace moescope {

std::optional<std::string> whole_trace(const std::string& file, const std::string& save_trace,
                                       const CommonOptions& options) {
  std::optional<std::string> trace;
  if (!file.empty()) {
    if (!options.workloads.empty()) {
      throw InvalidArgument("workload", options.workloads.front(), "cannot be given beside a file");
    }
    trace = file;
  } else if (options.workloads.size() == 1) {
    const WorkloadSpec spec = WorkloadSpec::parse(options.workloads.front());
    trace = spec.all_layers ? std::optional(spec.path) : std::nullopt;
  }
  if (trace && !save_trace.empty()) {
    throw InvalidArgument("save_trace", save_trace, "one file holds the routing of one workload");
  }
  return trace;
}

ExitCode inspect_trace(const std::string& path, const CommonOptions& options, const Invocation& invocation,
                       TableOutput& out) {
  const std::filesystem::path found = find_workload_file(path);
  const ArrayFile file = read_array_file(found);
  GridExtents grid{};
  if (!options.grid.empty()) {
    grid = parse_grid(options.grid);
  } else if (options.num_experts) {
    grid = {1, *options.num_experts};
  }
  const TraceInfo info = trace_info(file, found.string());
  std::vector<LayerSkew> layers = skew_of_layers(file, found.string(), grid.rows, grid.cols);
  if (!options.output.empty()) {
    for (LayerSkew& layer : layers) {
      set_extent("hidden_size", options.hidden_size, 1, layer.shape.hidden_size);
      layer.shape.validate();  // rows name it
    }
    const auto backend = make_backend(options.backend);
    const auto writer = open_rows(options.output, run_header(invocation, *backend));
    for (const LayerSkew& layer : layers) {
      Point point = layer_point(layer.shape, backend->name(),
                                layer.layer == "-" ? fmt::format("trace:{}", path)
                                                   : fmt::format("trace:{}#layer={}", path, layer.layer),
                                options.seed);
      point.system = info.system.empty() ? point.system : to_string(parse_system(info.system));
      for (const ResultRow& row : skew_rows(point, layer.skew)) {
        writer->write(row);
      }
    }
  }
  out.text() << fmt::format("{}: {}\n\n", path, trace_text(info));
  out.show("skew of each layer", layer_skew_table(layers));
  if (!options.output.empty()) {
    out.text() << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", options.output);
  }
  return ExitCode::kOk;
}

}  // namespace moescope
