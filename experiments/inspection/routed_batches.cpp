#include "experiments/inspection/routed_batches.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/grid_text.hpp"
#include "core/files/npy.hpp"
#include "core/import/import.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/trace_file.hpp"
#include "core/workload/workload_files.hpp"
#include "experiments/options/sim_options.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/report/layer_names.hpp"

namespace moescope {
namespace {

/// Weights of one expert; 0 where a width is not known.
std::int64_t expert_bytes(std::optional<System> system, std::int64_t hidden_size, std::int64_t expert_size,
                          Dtype dtype) {
  const std::int64_t row = hidden_size * dtype_bytes(dtype);
  if (system && traits_of(*system).experts == ExpertKind::kNeuron) {
    return 2 * row;
  }
  if (system && traits_of(*system).experts == ExpertKind::kValue) {
    return row;
  }
  return 3 * row * expert_size;  // gate, up, down
}

Dtype chosen_dtype(const CommonOptions& options) {
  return options.dtype.empty() ? Dtype::kBF16 : parse_dtype(options.dtype);
}

/// What recorded routing says beside the routing itself.
struct Recorded {
  std::string system;
  std::int64_t hidden_size = 0;
  std::int64_t expert_size = 0;
  std::int64_t heads = 1;
};

/// The first tokens asked for.
Routing first_tokens(Routing routing, const CommonOptions& options) {
  if (!options.num_tokens || *options.num_tokens == routing.num_tokens) {
    return routing;
  }
  if (*options.num_tokens < 1 || *options.num_tokens > routing.num_tokens) {
    throw InvalidArgument("num_tokens", fmt::to_string(*options.num_tokens),
                          fmt::format("must be from 1 to {}, which are recorded", routing.num_tokens));
  }
  return slice_tokens(routing, 0, *options.num_tokens);
}

RoutedBatch recorded_batch(Routing rows, Recorded recorded, const std::string& name,
                           const std::string& workload, const CommonOptions& options) {
  RoutedBatch batch;
  std::optional<System> system;
  if (!options.systems.empty()) {
    system = chosen_system(options);
  } else if (!recorded.system.empty()) {
    system = parse_system(recorded.system);
  }
  set_extent("hidden_size", options.hidden_size, 1, recorded.hidden_size);
  set_extent("expert_size", options.expert_size, 1, recorded.expert_size);
  set_extent("heads", options.heads, 1, recorded.heads);
  batch.name = name;
  batch.routing = first_tokens(merge_heads(rows, recorded.heads), options);
  batch.hidden_size = recorded.hidden_size;
  batch.dtype = chosen_dtype(options);
  batch.expert_bytes = expert_bytes(system, recorded.hidden_size, recorded.expert_size, batch.dtype);
  LayerShape shape;
  shape.num_tokens = batch.routing.num_tokens;
  shape.hidden_size = recorded.hidden_size;
  shape.grid_rows = batch.routing.grid_rows;
  shape.grid_cols = batch.routing.grid_cols;
  shape.top_k = static_cast<std::int64_t>(rows.ids_of(0).size()) * recorded.heads;
  shape.dtype = batch.dtype;
  batch.point = layer_point(shape, "cpu", workload, options.seed);
  if (system) {
    batch.point.system = to_string(*system);
  }
  if (system && traits_of(*system).experts == ExpertKind::kFfn && recorded.expert_size > 0) {
    batch.point.expert_size = recorded.expert_size;
  }
  return batch;
}

std::vector<RoutedBatch> batches_of_trace(const ArrayFile& file, const std::string& path,
                                          std::optional<std::int64_t> only, const std::string& shown,
                                          const CommonOptions& options) {
  const TraceInfo info = trace_info(file, path);
  GridExtents grid{};
  if (!options.grid.empty()) {
    grid = parse_grid(options.grid);
  } else if (options.num_experts) {
    grid = {1, *options.num_experts};
  }
  std::vector<std::optional<std::int64_t>> numbers(info.layers.begin(), info.layers.end());
  if (only || numbers.empty()) {
    numbers = {only};
  }
  std::vector<RoutedBatch> batches;
  for (const std::optional<std::int64_t>& number : numbers) {
    Recorded recorded{info.system, info.hidden_size, info.expert_size,
                      detail::metadata_extent(file, path, "heads").value_or(1)};
    batches.push_back(recorded_batch(
        trace_routing(file, path, number, grid.rows, grid.cols), std::move(recorded),
        number ? fmt::format("layer {}", *number) : short_workload("trace:" + shown),
        number ? fmt::format("trace:{}#layer={}", shown, *number) : "trace:" + shown, options));
  }
  return batches;
}

/// One layer of an imported trace.
Routing layer_routing(const LayeredTrace& trace, std::size_t layer) {
  Routing routing;
  routing.num_tokens = trace.num_tokens;
  routing.grid_rows = trace.grid_rows > 0 ? trace.grid_rows : 1;
  routing.grid_cols = trace.grid_rows > 0 ? trace.grid_cols : trace.num_experts;
  routing.token_offsets.push_back(0);
  const auto k = static_cast<std::size_t>(trace.top_k);
  std::vector<std::size_t> order(k);
  for (std::int64_t token = 0; token < trace.num_tokens; ++token) {
    const std::size_t first =
        (layer * static_cast<std::size_t>(trace.num_tokens) + static_cast<std::size_t>(token)) * k;
    std::iota(order.begin(), order.end(), first);
    std::ranges::sort(order, {}, [&](std::size_t pair) { return trace.expert_ids[pair]; });
    for (const std::size_t pair : order) {
      routing.expert_ids.push_back(trace.expert_ids[pair]);
      routing.gates.push_back(trace.gates.empty() ? 1.0F / static_cast<float>(k) : trace.gates[pair]);
    }
    routing.token_offsets.push_back(routing.num_pairs());
  }
  return routing;
}

bool is_trace(const std::filesystem::path& path) {
  try {
    (void)trace_info(read_array_file(path), path.string());
    return true;
  } catch (const FileError&) {
    return false;  // what import makes of it, or says
  }
}

RoutedBatch omnimoe_batch(MoeBackend& backend, const NamedWorkload& workload, const CommonOptions& options) {
  LayerShape shape = resolve_shape(options, workload.spec);
  require_room(workload.spec, shape);
  RoutedLayer routed = route_layer(backend, workload, shape, options.seed);
  RoutedBatch batch;
  batch.name = short_workload(workload.name);
  batch.hidden_size = shape.hidden_size;
  batch.dtype = shape.dtype;
  batch.expert_bytes = expert_bytes(System::kOmniMoe, shape.hidden_size, 0, shape.dtype);
  batch.point = layer_point(routed.shape, backend.name(), workload.name, options.seed);
  batch.routing = std::move(routed.routing);
  return batch;
}

RoutedBatch system_batch(MoeBackend& backend, System system, const NamedWorkload& workload,
                         const CommonOptions& options) {
  const SystemShape shape = resolve_system(options, system, workload.spec);
  if (!shape.has_routing()) {
    throw InvalidArgument("system", to_string(system), "routes nothing");
  }
  RoutedBatch batch;
  batch.name = short_workload(workload.name);
  batch.hidden_size = shape.hidden_size;
  batch.dtype = shape.dtype;
  batch.expert_bytes = expert_bytes(system, shape.hidden_size, shape.expert_size, shape.dtype);
  batch.point = layer_point(shape, backend.name(), workload.name, options.seed);
  batch.routing =
      merge_heads(route_system(backend, make_system_inputs(workload, shape, options)), shape.heads);
  return batch;
}

}  // namespace

std::vector<RoutedBatch> batches_of_file(const std::string& path, const CommonOptions& options) {
  const std::filesystem::path found = find_workload_file(path);
  if (is_trace(found)) {
    return batches_of_trace(read_array_file(found), found.string(), std::nullopt, path, options);
  }
  ImportOptions import;
  import.top_k = options.top_k;
  import.num_experts = options.num_experts;
  const ImportedTrace imported = import_trace({found}, import);
  std::vector<RoutedBatch> batches;
  for (std::size_t layer = 0; layer < imported.trace.layers.size(); ++layer) {
    const std::int64_t number = imported.trace.layers[layer];
    batches.push_back(recorded_batch(
        layer_routing(imported.trace, layer),
        {imported.trace.system, imported.trace.hidden_size, imported.trace.expert_size, 1},
        fmt::format("layer {}", number), fmt::format("trace:{}#layer={}", path, number), options));
  }
  return batches;
}

std::vector<RoutedBatch> batches_of_workloads(MoeBackend& backend, const CommonOptions& options) {
  const System system = chosen_system(options);
  const std::vector<NamedWorkload> workloads = system == System::kOmniMoe || !options.workloads.empty()
                                                   ? chosen_workloads(options)
                                                   : std::vector{named_workload("gaussian:1")};
  std::vector<RoutedBatch> batches;
  for (const NamedWorkload& workload : workloads) {
    if (workload.spec.family == WorkloadSpec::Family::kTrace) {
      std::vector<RoutedBatch> layers =
          batches_of_trace(read_array_file(workload.spec.path), workload.spec.path, workload.spec.layer,
                           workload.name.substr(workload.name.find(':') + 1,
                                                workload.name.find('#') - workload.name.find(':') - 1),
                           options);
      batches.push_back(std::move(layers.front()));
    } else if (system == System::kOmniMoe) {
      batches.push_back(omnimoe_batch(backend, workload, options));
    } else {
      batches.push_back(system_batch(backend, system, workload, options));
    }
  }
  return batches;
}

}  // namespace moescope
