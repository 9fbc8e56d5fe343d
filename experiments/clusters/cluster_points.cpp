#include "experiments/clusters/cluster_points.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/systems/system_traits.hpp"
#include "experiments/clusters/cluster_exports.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "experiments/points/model_study.hpp"
#include "profiler/cluster/scaling_text.hpp"

namespace moescope {
namespace {

constexpr const char* kScalingFigure = "scaling";

/// One way to share a layer.
struct Way {
  ScheduleOptions schedule;
  std::int64_t chunks = 1;
};

/// What was asked for, checked.
struct ClusterPlan {
  ClusterSpec cluster;
  DeviceSpec device;
  Scaling scaling = Scaling::kStrong;
  std::vector<RankGroup> groups;
  std::vector<Way> ways;
  std::vector<NamedWorkload> workloads;
};

std::vector<std::int64_t> counts(const char* field, const std::vector<std::string>& texts) {
  std::vector<std::int64_t> values;
  for (const std::string& text : texts) {
    const auto value = parse_number<std::int64_t>(text);
    if (!value || *value < 1) {
      throw InvalidArgument(field, text, "must be a whole number from 1");
    }
    if (std::ranges::find(values, *value) == values.end()) {
      values.push_back(*value);
    }
  }
  return values;
}

std::vector<RankGroup> groups_of(const ClusterSpec& cluster, const std::vector<std::string>& asked) {
  std::vector<std::int64_t> ranks = counts("ranks", asked);
  if (ranks.empty()) {
    for (std::int64_t p = 1; p < cluster.gpus(); p *= 2) {
      ranks.push_back(p);
    }
    ranks.push_back(cluster.gpus());
  }
  std::ranges::sort(ranks);
  std::vector<RankGroup> groups;
  for (const std::int64_t p : ranks) {
    groups.push_back(cluster.group(p));
  }
  return groups;
}

std::vector<Way> ways_of(const CommonOptions& options, const ClusterOptions& asked) {
  std::vector<ScheduleOptions> schedules = {{.kind = ScheduleKind::kStaircase}};
  if (!options.schedules.empty()) {
    schedules = modelled_schedules(options);
  }
  std::vector<PlacementSpec> placements;
  for (const std::string& name : asked.placements) {
    placements.push_back(PlacementSpec::parse(name));
  }
  if (placements.empty()) {
    placements.emplace_back();
  }
  std::vector<Exchange> exchanges;
  for (const std::string& name : asked.exchanges) {
    exchanges.push_back(parse_exchange(name));
  }
  if (exchanges.empty()) {
    exchanges.push_back(Exchange::kGather);
  }
  std::vector<std::int64_t> chunks = counts("chunks", asked.chunks);
  if (chunks.empty()) {
    chunks.push_back(1);
  }
  if (asked.no_overlap && std::ranges::max(chunks) > 1) {
    throw InvalidArgument("chunks", fmt::to_string(std::ranges::max(chunks)),
                          "are for exchanges that overlap: not with --no-overlap");
  }
  std::vector<Way> ways;
  for (ScheduleOptions schedule : schedules) {
    if (schedule.kind == ScheduleKind::kAuto || schedule.kind == ScheduleKind::kSparseLibrary ||
        schedule.kind == ScheduleKind::kDenseMasked) {
      throw InvalidArgument("schedule", to_string(schedule), "is not modelled on several ranks");
    }
    for (const PlacementSpec& placement : placements) {
      for (const Exchange exchange : exchanges) {
        for (const std::int64_t parts : chunks) {
          schedule.ranks.placement = placement;
          schedule.ranks.exchange = exchange;
          ways.push_back({schedule, parts});
        }
      }
    }
  }
  return ways;
}

ClusterPlan plan_of(const CommonOptions& options, const SimulatorOptions& simulator,
                    const ClusterOptions& asked) {
  if (const System system = chosen_system(options); system != System::kOmniMoe) {
    throw InvalidArgument("system", to_string(system), "is not modelled on several GPUs: omnimoe is");
  }
  if (simulator.devices.size() > 1) {
    throw InvalidArgument("device", simulator.devices[1], "a cluster is of one kind");
  }
  ClusterPlan plan;
  plan.cluster = find_cluster(asked.cluster);
  plan.scaling = asked.scaling.empty() ? Scaling::kStrong : parse_scaling(asked.scaling);
  plan.groups = groups_of(plan.cluster, asked.ranks);
  plan.ways = ways_of(options, asked);
  plan.device = find_device(simulator.devices.empty() ? plan.cluster.device : simulator.devices.front());
  plan.workloads = chosen_workloads(options);
  return plan;
}

/// The shape on a number of GPUs: with weak scaling -L is of each of them.
LayerShape shape_on(const CommonOptions& options, const NamedWorkload& workload, Scaling scaling,
                    std::int64_t ranks) {
  LayerShape shape = resolve_shape(options, workload.spec);
  if (scaling == Scaling::kWeak) {
    CommonOptions more = options;
    more.num_tokens = shape.num_tokens * ranks;
    shape = resolve_shape(more, workload.spec);
  }
  require_room(workload.spec, shape);
  return shape;
}

/// A workload on every number of GPUs in every way.
ScalingStudy scaling_of(const CommonOptions& options, const ClusterOptions& asked, const ClusterPlan& plan,
                        const NamedWorkload& workload, const RanksDevice& device, ModelStudy& study,
                        Progress& progress) {
  ScalingStudy scaling;
  scaling.scaling = plan.scaling;
  scaling.workload = workload.name;
  scaling.cluster = plan.cluster.name;
  for (const RankGroup& group : plan.groups) {
    const LayerShape shape = shape_on(options, workload, plan.scaling, group.ranks);
    const RoutedLayer& layer = study.route(workload, shape, options.seed);
    std::optional<std::string> alone;
    for (const Way& way : plan.ways) {
      progress.begin(fmt::format("{} on {} GPUs", workload.name, group.ranks));
      ScheduleOptions schedule = way.schedule;
      schedule.ranks.group = group;
      const std::string name = to_string(schedule);
      if (group.ranks == 1 && alone == name) {
        progress.advance();  // one GPU has no placement, exchange or chunks
        continue;
      }
      const RanksQuestion question{
          layer.shape,      layer.routing, layer.fixed_routing, schedule, group.ranks == 1 ? 1 : way.chunks,
          !asked.no_overlap};
      ScalingPoint point;
      point.model = model_ranks(question, device, [&](std::int64_t done, std::int64_t all) {
        progress.detail(fmt::format("rank {} of {}", done, all));
      });
      point.point =
          layer_point(layer.shape, fmt::format("sim: {}", plan.cluster.name), workload.name, options.seed);
      point.point.set_schedule(schedule);
      point.point.l2_state = "cold";
      scaling.points.push_back(std::move(point));
      alone = name;
      progress.advance();
    }
  }
  return scaling;
}

}  // namespace

void add_cluster_options(Cli app, ClusterOptions& options) {
  const Cli group = app.add_option_group("Cluster", "a layer that several GPUs share");
  group
      .add_option(
          "--cluster", options.cluster,
          fmt::format("cluster to model a layer on: {}, or a file of your own (docs/simulator/cluster.md)",
                      fmt::join(known_clusters(), ", ")))
      .type_name("NAME|FILE");
  group
      .add_option("--ranks", options.ranks,
                  "numbers of GPUs, by comma (default: 1, 2, 4, ... up to all; more than the cluster has get "
                  "further nodes)")
      .type_name("P,P,...")
      .delimiter(',');
  group
      .add_option("--placement", options.placements, placement_help() + "; may be repeated (default: linear)")
      .type_name("NAME")
      .repeatable();
  group.add_option("--exchange", options.exchanges, "gather (default) or dispatch; may be repeated")
      .type_name("NAME")
      .repeatable();
  group
      .add_option("--chunks", options.chunks,
                  "parts of the batch that travel and are computed in turns, by comma (default 1)")
      .type_name("C,C,...")
      .delimiter(',');
  group
      .add_option("--scaling", options.scaling,
                  "strong (default): -L tokens in all; weak: -L tokens on every GPU")
      .type_name("NAME");
  group.add_flag("--no-overlap", options.no_overlap, "every exchange is waited for");
  group
      .add_option("--goal", options.goal,
                  "write the layer as GOAL text, for LogGOPSim and ATLAHS; of one number of GPUs")
      .type_name("FILE");
  group
      .add_option("--chakra", options.chakra,
                  "write the layer as Chakra execution traces, a JSON file for each rank; likewise")
      .type_name("FOLDER");
}

void require_no_cluster_options(const ClusterOptions& options) {
  const auto refuse = [](const char* field, const std::string& value) {
    throw InvalidArgument(field, value, "is for several GPUs: --cluster");
  };
  const auto refuse_any = [&](const char* field, const std::vector<std::string>& values) {
    if (!values.empty()) {
      refuse(field, values.front());
    }
  };
  refuse_any("ranks", options.ranks);
  refuse_any("placement", options.placements);
  refuse_any("exchange", options.exchanges);
  refuse_any("chunks", options.chunks);
  if (!options.scaling.empty()) {
    refuse("scaling", options.scaling);
  }
  for (const auto& [field, value] :
       {std::pair{"goal", &options.goal}, std::pair{"chakra", &options.chakra}}) {
    if (!value->empty()) {
      refuse(field, *value);
    }
  }
  if (options.no_overlap) {
    refuse("no_overlap", "true");
  }
}

ExitCode simulate_cluster(const CommonOptions& options, const SimulatorOptions& simulator,
                          const ClusterOptions& asked, const Invocation& invocation) {
  StandardTables out(options.tables);
  const ClusterPlan plan = plan_of(options, simulator, asked);
  ModelStudy study(simulator);
  ReplayOptions replay = replay_options(simulator);
  replay.threads = omp_get_max_threads();
  const RanksDevice device{plan.cluster, plan.device, study.calibration(plan.device), replay};
  for (const NamedWorkload& workload : plan.workloads) {
    for (const RankGroup& group : plan.groups) {
      (void)shape_on(options, workload, plan.scaling, group.ranks);
    }
  }
  std::vector<std::filesystem::path> kept = workload_files(plan.workloads);
  for (const std::filesystem::path& file : simulator_files(simulator)) {
    kept.push_back(file);
  }
  const bool one = plan.groups.size() == 1 && plan.ways.size() == 1 && plan.workloads.size() == 1;
  const ClusterExports exports(asked.goal, asked.chakra, one ? plan.groups.front().ranks : 0, kept);
  std::optional<ResultWriter> writer;
  if (!options.output.empty()) {
    RunHeader header = run_header(invocation, *make_backend("cpu"));
    header.device = fmt::format("modelled: {}", plan.cluster.name);
    writer.emplace(open_results(options.output, std::move(header), figure_files(kScalingFigure)));
  }
  Progress progress(std::cerr, progress_style(options),
                    static_cast<std::int64_t>(plan.workloads.size() * plan.groups.size() * plan.ways.size()));
  std::vector<ScalingStudy> studies;
  for (const NamedWorkload& workload : plan.workloads) {
    studies.push_back(scaling_of(options, asked, plan, workload, device, study, progress));
  }
  progress.finish();
  const LayerShape shape = resolve_shape(options, plan.workloads.front().spec);
  out.text() << fmt::format("{}  {} scaling on {}  {}  {} tokens{}  grid {} x {}  d {}  K {}\n\n",
                            plan.workloads.size() > 1 ? "several workloads" : plan.workloads.front().name,
                            to_string(plan.scaling), plan.cluster.name, to_string(shape.dtype),
                            shape.num_tokens, plan.scaling == Scaling::kWeak ? " per GPU" : "",
                            shape.grid_rows, shape.grid_cols, shape.hidden_size, shape.top_k);
  out.show("scaling", scaling_table(studies));
  if (studies.size() == 1 && studies.front().points.size() == 1) {
    out.text() << '\n';
    out.show("stages", rank_stage_table(studies.front().points.front()));
  }
  out.text() << '\n';
  for (const std::string& text : scaling_conclusion(studies)) {
    out.text() << text << '\n';
  }
  if (const std::string text = exports.write(studies.front().points.front().model); !text.empty()) {
    out.text() << '\n' << text;
  }
  if (writer) {
    for (const ScalingStudy& each : studies) {
      for (const ResultRow& row : scaling_rows(each)) {
        writer->write(row);
      }
    }
    const FigureResult figure = draw_figure(scaling_figure(studies), writer->directory(), kScalingFigure);
    out.text() << fmt::format("\nrows:   {}/rows.jsonl, rows.csv, run.json\n", writer->directory().string());
    out.text() << figure_line(figure);
  }
  return ExitCode::kOk;
}

}  // namespace moescope
