#include "experiments/clusters/volume_points.hpp"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "core/systems/system_workload.hpp"
#include "core/workload/workload.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/sim_options.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/cluster/volume_study.hpp"

namespace moescope {
namespace {

constexpr const char* kVolumeFigure = "volume";
/// Of a size, by halves and doubles.
constexpr int kHalvings = 2;
/// Of a grid's sides: the paper's figure begins at 1K experts.
constexpr int kGridHalvings = 3;

/// The layer that sizes are varied of: L K is the paper's 16,384.
LayerShape base_shape(const CommonOptions& options, const NamedWorkload& workload) {
  CommonOptions asked = options;
  if (asked.preset.empty()) {
    asked.num_tokens = asked.num_tokens.value_or(256);
    asked.top_k = asked.top_k.value_or(64);
    asked.hidden_size = asked.hidden_size.value_or(1024);
    if (asked.grid.empty() && !asked.num_experts) {
      asked.grid = "256x256";
    }
  }
  return resolve_shape(asked, workload.spec);
}

/// value / 4, ..., value * 4.
std::vector<std::int64_t> around(std::int64_t value) {
  std::vector<std::int64_t> values;
  for (int step = -kHalvings; step <= kHalvings; ++step) {
    const std::int64_t size = step < 0 ? value >> -step : value << step;
    if (size >= 1 && (values.empty() || size != values.back())) {
      values.push_back(size);
    }
  }
  return values;
}

class Study {
 public:
  Study(const CommonOptions& options, const VolumeOptions& volume, const ClusterSpec* cluster,
        NamedWorkload workload)
      : options_(options),
        cluster_(cluster),
        workload_(std::move(workload)),
        backend_(make_backend("cpu")),
        base_(base_shape(options, workload_)) {
    ranks_.group.ranks = volume.ranks;
    ranks_.placement = volume.placement.empty() ? PlacementSpec{} : PlacementSpec::parse(volume.placement);
    require_room(workload_.spec, base_);
  }

  const LayerShape& base() const { return base_; }

  std::vector<VolumeAxis> axes() const {
    std::vector<VolumeAxis> axes;
    // Grids with both sides grown together, so that N goes by fours.
    VolumeAxis& experts = axes.emplace_back(VolumeAxis{"N", {}});
    for (int step = -kGridHalvings; step <= kHalvings; ++step) {
      LayerShape shape = base_;
      shape.grid_rows = step < 0 ? base_.grid_rows >> -step : base_.grid_rows << step;
      shape.grid_cols = step < 0 ? base_.grid_cols >> -step : base_.grid_cols << step;
      add(experts, shape, ranks_.group.ranks);
    }
    VolumeAxis& tokens = axes.emplace_back(VolumeAxis{"L", {}});
    for (const std::int64_t size : around(base_.num_tokens)) {
      LayerShape shape = base_;
      shape.num_tokens = size;
      add(tokens, shape, ranks_.group.ranks);
    }
    VolumeAxis& chosen = axes.emplace_back(VolumeAxis{"K", {}});
    for (const std::int64_t size : around(base_.top_k)) {
      LayerShape shape = base_;
      shape.top_k = size;
      add(chosen, shape, ranks_.group.ranks);
    }
    VolumeAxis& ranks = axes.emplace_back(VolumeAxis{"P", {}});
    for (const std::int64_t size : around(ranks_.group.ranks)) {
      if (size > 1) {
        add(ranks, base_, size);
      }
    }
    std::erase_if(axes, [](const VolumeAxis& axis) { return axis.layers.empty(); });
    return axes;
  }

 private:
  /// A size that cannot be is left out: fewer experts than K, more ranks than the cluster reaches.
  void add(VolumeAxis& axis, const LayerShape& shape, std::int64_t ranks) const {
    RankOptions options = ranks_;
    try {
      shape.validate();
      require_room(workload_.spec, shape);
      options.group = cluster_ == nullptr ? RankGroup{ranks, 1} : cluster_->group(ranks);
      options.group.validate();
    } catch (const InvalidArgument&) {
      if (shape.label() == base_.label() && ranks == ranks_.group.ranks) {
        throw;  // what was asked for
      }
      return;
    }
    const RoutedLayer layer = route_layer(*backend_, workload_, shape, options_.seed);
    axis.layers.push_back(layer_volume(
        layer.shape, layer.routing, layer_point(layer.shape, backend_->name(), workload_.name, options_.seed),
        options, cluster_));
  }

  const CommonOptions& options_;
  const ClusterSpec* cluster_;
  NamedWorkload workload_;
  std::unique_ptr<MoeBackend> backend_;
  LayerShape base_;
  RankOptions ranks_;
};

}  // namespace

ExitCode place_volume(const CommonOptions& options, const VolumeOptions& volume,
                      const Invocation& invocation) {
  StandardTables out(options.tables);
  if (const System system = chosen_system(options); system != System::kOmniMoe) {
    throw InvalidArgument("system", to_string(system), "volume is held against the paper's claim: omnimoe");
  }
  if (options.workloads.size() > 1) {
    throw InvalidArgument("workload", options.workloads[1], "volume is of one");
  }
  NamedWorkload workload =
      named_workload(options.workloads.empty() ? "gaussian:1" : options.workloads.front());
  if (from_file(workload.spec)) {
    throw InvalidArgument("workload", workload.name, "has sizes of its own, which volume varies");
  }
  std::optional<ClusterSpec> cluster;
  if (!volume.cluster.empty()) {
    cluster = find_cluster(volume.cluster);
  }
  const ClusterSpec* const on = cluster ? &*cluster : nullptr;
  const std::string name = workload.name;
  const Study study(options, volume, on, std::move(workload));
  std::optional<ResultWriter> writer;
  if (!options.output.empty()) {
    writer.emplace(open_results(options.output, run_header(invocation, *make_backend("cpu")),
                                figure_files(kVolumeFigure)));
  }
  const std::vector<VolumeAxis> axes = study.axes();
  out.text() << fmt::format("{}  {}  {} on {} ranks{}\n\n", name, study.base().label(),
                            volume.placement.empty() ? "linear" : volume.placement, volume.ranks,
                            on == nullptr ? "" : fmt::format(", times modelled on {}", on->name));
  out.show("volume", volume_table(axes));
  out.text() << '\n';
  for (const std::string& text : volume_conclusion(axes, on)) {
    out.text() << text << '\n';
  }
  if (writer) {
    for (const ResultRow& row : volume_rows(axes)) {
      writer->write(row);
    }
    const FigureResult figure = draw_figure(volume_figure(axes), writer->directory(), kVolumeFigure);
    out.text() << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", writer->directory().string());
    out.text() << figure_line(figure);
  }
  return ExitCode::kOk;
}

}  // namespace moescope
