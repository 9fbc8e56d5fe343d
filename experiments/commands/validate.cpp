#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "core/files/regular_file.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/sim_options.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/simulator/sim_validation.hpp"
#include "profiler/study/or_failure.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

struct ValidateOptions : SimulatorOptions {
  std::vector<std::string> files;
  std::vector<std::string> metrics = {"time_s", "hbm_bytes", "l2_read_bytes"};
  std::string data_folder = "data";
  std::int64_t shared_size = 1024;
  std::uint64_t seed = 0;
  std::string hold_out = "points";
  std::string fit;
  std::string output;
  TableOptions tables;
  int threads = 0;
  bool quiet = false;
};

/// What one routing serves.
struct MeasuredLayer {
  LayerShape shape;
  std::string workload;
  std::uint64_t seed = 0;

  auto key() const {
    return std::tuple(shape.label(), std::string(to_string(shape.dtype)), shape.shared_size, workload, seed);
  }
};

/// A schedule on a layer, with what was measured: stage and metric to value.
struct MeasuredPoint {
  MeasuredLayer layer;
  ScheduleOptions schedule;
  std::map<std::pair<std::string, std::string>, double> values;
};

/// Read and written: what a stage costs HBM. A sum of two counters, so rows do not have it.
constexpr const char* kHbmBytes = "hbm_bytes";
constexpr std::array kHbmParts = {"hbm_read_bytes", "hbm_write_bytes"};

bool is_asked_for(const std::string& metric, const ValidateOptions& options) {
  const auto asked = [&](std::string_view name) {
    return std::ranges::find(options.metrics, name) != options.metrics.end();
  };
  return asked(metric) || (asked(kHbmBytes) && std::ranges::find(kHbmParts, metric) != kHbmParts.end());
}

bool takes_part(const ResultRow& row, const ValidateOptions& options) {
  return row.source == Source::kMeasured && row.status == Status::kOk && row.backend == "cuda" &&
         row.system == "omnimoe" && row.l2_state == "cold" && row.value && is_asked_for(row.metric, options);
}

/// The sum of both parts, for every stage that has them.
void add_hbm_bytes(MeasuredPoint& point) {
  std::map<std::pair<std::string, std::string>, double> sums;
  for (const auto& [name, value] : point.values) {
    const auto other = point.values.find({name.first, kHbmParts[1]});
    if (name.second == kHbmParts[0] && other != point.values.end()) {
      sums[{name.first, kHbmBytes}] = value + other->second;
    }
  }
  point.values.merge(sums);
}

std::vector<MeasuredPoint> read_points(const ValidateOptions& options) {
  std::vector<MeasuredPoint> points;
  std::map<std::string, std::size_t> places;
  for (const std::string& file : options.files) {
    for (const RecordedRun& run : read_rows(file)) {
      for (const ResultRow& row : run.rows) {
        if (!takes_part(row, options)) {
          continue;
        }
        if (row.schedule == "tuned") {
          continue;  // says which in words alone, and the same schedule is there by its name
        }
        MeasuredPoint point;
        point.schedule = parse_schedule(row.schedule);
        if (point.schedule.kind == ScheduleKind::kSparseLibrary ||
            point.schedule.kind == ScheduleKind::kAuto) {
          continue;  // not ours, or not said which
        }
        LayerShape& shape = point.layer.shape;
        shape.num_tokens = row.num_tokens;
        shape.hidden_size = row.hidden_size;
        shape.grid_rows = row.grid_rows;
        shape.grid_cols = row.grid_cols;
        shape.top_k = row.top_k;
        shape.dtype = parse_dtype(row.dtype);
        shape.shared_size = row.shared_size.value_or(options.shared_size);
        shape.validate();
        point.layer.workload = row.workload;
        point.layer.seed = row.seed;
        point.schedule.group_size = row.group_size.value_or(point.schedule.group_size);
        point.schedule.tile_tokens = row.tile_tokens.value_or(point.schedule.tile_tokens);
        const std::string name = fmt::format(
            "{} {} {} {} {} {} {} {} {}", run.header.run_id, shape.label(), row.dtype, shape.shared_size,
            row.workload, row.seed, row.schedule, point.schedule.group_size, point.schedule.tile_tokens);
        const auto [place, is_new] = places.emplace(name, points.size());
        if (is_new) {
          points.push_back(std::move(point));
        }
        points[place->second].values[{row.stage, row.metric}] = *row.value;
      }
    }
  }
  for (MeasuredPoint& point : points) {
    add_hbm_bytes(point);
  }
  return points;
}

/// The workload of a row, whose file may lie in the data folder here.
NamedWorkload workload_of(const std::string& name, const std::string& data_folder) {
  const auto colon = name.find(':');
  const std::string family = name.substr(0, colon);
  if (family == "snapshot" || family == "trace") {
    const fs::path file = name.substr(colon + 1);
    const fs::path here = fs::path(data_folder) / file.filename();
    if (!file_exists(file) && file_exists(here)) {
      return {WorkloadSpec::parse(family + ":" + here.string()), name};
    }
  }
  return {WorkloadSpec::parse(name), name};
}

/// The kernels that a recorded staircase ran: its stages tell.
StaircaseKernels staircase_kernels(const MeasuredPoint& point) {
  const bool lists = std::ranges::any_of(
      point.values, [](const auto& value) { return value.first.first == to_string(Stage::kExpertScores); });
  return lists ? StaircaseKernels::kLists : StaircaseKernels::kThresholds;
}

double modelled(const StageModel& stage, std::string_view metric) {
  const LaunchReplay& sums = stage.sums;
  return metric == "time_s"                ? stage.time_s
         : metric == kHbmBytes             ? sums.hbm_read_bytes + sums.hbm_write_bytes
         : metric == "hbm_read_bytes"      ? sums.hbm_read_bytes
         : metric == "hbm_write_bytes"     ? sums.hbm_write_bytes
         : metric == "l2_read_bytes"       ? sums.l2_read_bytes + sums.multicast_bytes
         : metric == "l2_slice_read_bytes" ? sums.l2_read_bytes
         : metric == "l2_write_bytes"      ? sums.l2_write_bytes
         : metric == "l2_reduction_bytes"  ? sums.l2_reduce_bytes
         : metric == "l2_fabric_bytes"     ? sums.link_bytes
                                           : -1;
}

/// What the model says of one recorded point.
struct PointModel {
  const MeasuredPoint* point;
  LayerModel model;
};

/// Predictions beside measurements, in the order of the models.
std::vector<Prediction> compare(std::span<const PointModel> models, const ValidateOptions& options) {
  std::vector<Prediction> predictions;
  for (const auto& [point, model] : models) {
    for (const auto& [name, measured] : point->values) {
      const auto& [stage_name, metric] = name;
      const auto stage = std::ranges::find(model.stages, stage_name,
                                           [](const StageModel& one) { return to_string(one.stage); });
      const double value = stage == model.stages.end() ? -1 : modelled(*stage, metric);
      if (value < 0 || measured <= 0 || std::ranges::count(options.metrics, metric) == 0) {
        continue;
      }
      Prediction one{.shape = point->layer.shape.label(),
                     .workload = point->layer.workload,
                     .seed = point->layer.seed,
                     .schedule = to_string(point->schedule),
                     .stage = stage_name,
                     .kernel = stage->kernel,
                     .metric = metric,
                     .predicted = value,
                     .measured = measured};
      one.bound_s = metric == "time_s" && stage->stage != Stage::kLayer ? stage->bound_s : 0;
      predictions.push_back(std::move(one));
    }
  }
  draw_held_out(predictions, parse_hold_out(options.hold_out), options.seed);
  return predictions;
}

std::vector<PointModel> model_points(std::vector<MeasuredPoint>& points, const ValidateOptions& options,
                                     const DeviceSpec& device, const Calibration& calibration,
                                     std::vector<std::string>& skipped) {
  std::ranges::stable_sort(points, {}, [](const MeasuredPoint& point) { return point.layer.key(); });
  const auto backend = make_backend("cpu");
  ReplayOptions replay = replay_options(options);
  Progress progress(std::cerr,
                    options.quiet          ? Progress::Style::kSilent
                    : stderr_is_terminal() ? Progress::Style::kTerminal
                                           : Progress::Style::kLines,
                    static_cast<std::int64_t>(points.size()));
  std::vector<PointModel> models;
  std::unique_ptr<RoutedLayer> layer;
  const MeasuredPoint* routed = nullptr;
  for (const MeasuredPoint& point : points) {
    progress.begin(
        fmt::format("{} {} {}", point.layer.shape.label(), point.layer.workload, to_string(point.schedule)));
    const auto model = [&] {
      if (routed == nullptr || routed->layer.key() != point.layer.key()) {
        routed = nullptr;
        layer = std::make_unique<RoutedLayer>(
            route_layer(*backend, workload_of(point.layer.workload, options.data_folder), point.layer.shape,
                        point.layer.seed));
        routed = &point;
      }
      StreamOptions stream = device.stream_options();
      stream.staircase = staircase_kernels(point);
      const Schedule schedule = build_schedule(layer->routing, point.schedule);
      const auto launches =
          layer_stream(layer->shape, layer->routing, schedule, stream, layer->fixed_routing);
      models.push_back({&point, simulate_layer(launches, device, calibration, replay)});
    };
    or_failure(model, [&](ExitCode, const std::string& reason) {
      skipped.push_back(fmt::format("{} {} {}: {}", point.layer.shape.label(), point.layer.workload,
                                    to_string(point.schedule), reason));
    });
    progress.advance();
  }
  return models;
}

void print_report(TableOutput& out, std::span<const Prediction> predictions,
                  const std::vector<std::string>& metrics, const std::vector<std::string>& skipped) {
  constexpr std::size_t kOutliers = 10;
  Table table = make_error_table();
  for (const std::string& metric : metrics) {
    if (std::ranges::count(predictions, metric, &Prediction::metric) == 0) {
      continue;
    }
    add_error_rows(table, predictions, metric, [](const Prediction&) { return std::string("all"); });
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return "stage " + p.stage; });
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return "schedule " + p.schedule; });
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return "shape " + p.shape; });
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return "workload " + p.workload; });
  }
  out.show("errors", table);
  out.text() << "\nworst:\n";
  for (const std::string& metric : metrics) {
    for (const std::string& line : outliers(predictions, metric, kOutliers)) {
      out.text() << "  " << one_line(line) << '\n';
    }
  }
  out.text() << target_text(predictions) << '\n';
  for (const std::string& line : skipped) {
    out.text() << "not predicted: " << one_line(line) << '\n';
  }
}

/// Tables of a document: everything and each stage, metric by metric.
void print_markdown(std::ostream& out, std::span<const Prediction> predictions,
                    const std::vector<std::string>& metrics) {
  for (const std::string& metric : metrics) {
    Table table = make_error_table();
    add_error_rows(table, predictions, metric, [](const Prediction&) { return std::string("all"); });
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return p.stage; });
    out << table.markdown() << '\n';
  }
  out << target_text(predictions) << "\n";
}

constexpr const char* kPredictions = "predictions.csv";
constexpr const char* kFigure = "validation";

std::string predictions_csv(std::span<const Prediction> predictions) {
  std::string text = "shape,workload,seed,schedule,stage,metric,predicted,measured,held_out\n";
  for (const Prediction& one : predictions) {
    text +=
        fmt::format("{},\"{}\",{},{},{},{},{:.6g},{:.6g},{}\n", one.shape, one.workload, one.seed,
                    one.schedule, one.stage, one.metric, one.predicted, one.measured, one.held_out ? 1 : 0);
  }
  return text;
}

/// Everything that is read: rows, calibration, device, and the files that workloads of the rows name.
std::vector<fs::path> files_read(const ValidateOptions& options, const std::vector<MeasuredPoint>& points) {
  std::vector<fs::path> files = simulator_files(options);
  files.insert(files.end(), options.files.begin(), options.files.end());
  for (const MeasuredPoint& point : points) {
    const auto more = workload_files({workload_of(point.layer.workload, options.data_folder)});
    files.insert(files.end(), more.begin(), more.end());
  }
  return files;
}

/// Where --output and --fit go.
struct Outputs {
  std::optional<OutputFolder> folder;
  std::optional<OutputFile> fit;
};

Outputs claim_outputs(const ValidateOptions& options, const std::vector<MeasuredPoint>& points) {
  Outputs outputs;
  std::vector<fs::path> kept = files_read(options, points);
  if (!options.output.empty()) {
    outputs.folder.emplace(options.output);
    std::vector<std::string> names = figure_files(kFigure);
    names.emplace_back(kPredictions);
    claim_files(outputs.folder->path(), names, kept);
    for (const std::string& name : names) {
      kept.push_back(outputs.folder->path() / name);
    }
  }
  if (!options.fit.empty()) {
    outputs.fit.emplace("fit", options.fit, kept);
  }
  return outputs;
}

/// The rows with their revisions, and the command that fits again.
std::string source_of_fit(const ValidateOptions& options) {
  std::vector<std::string> rows;
  std::vector<std::string> names;
  for (const std::string& file : options.files) {
    std::set<std::string> revisions;
    for (const RecordedRun& run : read_rows(file)) {
      revisions.insert(run.header.git_revision.substr(0, 7));
    }
    names.push_back(fs::path(file).filename().string());
    rows.push_back(fmt::format("{} (revision {})", names.back(), fmt::join(revisions, ", ")));
  }
  return fmt::format(
      "stage times of {}; the {} that draw {} holds out were not used; fitted are fixed_s and stretch of "
      "each "
      "stage's kernels; by moescope validate {} --hold-out {} --seed {} --max-accesses {} --fit FILE",
      fmt::join(rows, ", "), options.hold_out, options.seed, fmt::join(names, " "), options.hold_out,
      options.seed, options.max_accesses);
}

ExitCode validate_model(const ValidateOptions& options, const Invocation& /*invocation*/) {
  StandardTables out(options.tables);
  CommonOptions common;
  common.threads = options.threads;
  apply_threads(common);
  if (options.devices.size() > 1) {
    throw InvalidArgument("device", fmt::format("{}", fmt::join(options.devices, ",")),
                          "rows come from one device at a time");
  }
  parse_hold_out(options.hold_out);
  const DeviceSpec device = find_device(options.devices.empty() ? "h100-sxm" : options.devices.front());
  // A fit is of bounds, which no calibration changes: the project's own is not read, and may be fitted again.
  Calibration calibration =
      options.fit.empty() || !options.calibration.empty() ? chosen_calibration(options) : Calibration{};
  std::vector<MeasuredPoint> points = read_points(options);
  if (points.empty()) {
    throw InvalidArgument("rows", fmt::format("{}", fmt::join(options.files, " ")),
                          fmt::format("hold no measurement by the cuda backend, L2 cold, of {}",
                                      fmt::join(options.metrics, ", ")));
  }
  const Outputs outputs = claim_outputs(options, points);
  std::vector<std::string> skipped;
  std::vector<PointModel> models = model_points(points, options, device, calibration, skipped);
  std::vector<Prediction> predictions = compare(models, options);
  if (outputs.fit) {
    calibration = fit_calibration(predictions, device.name, source_of_fit(options));
    outputs.fit->write(calibration_json(calibration));
    for (PointModel& one : models) {
      calibrate(one.model, calibration);
    }
    predictions = compare(models, options);
  }
  out.text() << fmt::format(
      "{} modelled, {} points, of which the {} of draw {} are held out; errors are relative to the "
      "measurement\n",
      device.name, points.size(), options.hold_out, options.seed);
  out.text() << (calibration.source.empty() ? "not calibrated\n\n"
                                            : "calibration: " + calibration.source + "\n\n");
  if (out.style().format == TableFormat::kMarkdown) {
    print_markdown(out.text(), predictions, options.metrics);
  } else {
    print_report(out, predictions, options.metrics, skipped);
  }
  if (outputs.folder) {
    const fs::path& folder = outputs.folder->path();
    OutputFile("output", folder / kPredictions).write(predictions_csv(predictions));
    const FigureResult figure = draw_figure(
        validation_figure(predictions, device.name + ", modelled over measured"), folder, kFigure);
    out.text() << (figure.status == Status::kOk ? "figure: " + figure.image.string()
                                                : "no figure: " + figure.reason)
               << '\n';
  }
  return predictions.empty() ? ExitCode::kCheckFailed : ExitCode::kOk;
}

}  // namespace

Command add_validate(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<ValidateOptions>();
  const Cli sub = app.add_subcommand(
      "validate",
      "predictions of the simulator beside recorded measurements: errors, outliers, a scatter plot");
  sub.footer(examples({"moescope validate results/h100/compare-*.jsonl.gz --output results/validation",
                       "moescope validate rows.jsonl --calibration none",
                       "moescope validate rows.jsonl --fit calibration.json --hold-out shapes --seed 7"}));
  sub.add_option("rows", options->files, "recorded rows.jsonl files").required().type_name("FILE");
  sub.add_option("--metric", options->metrics,
                 "quantities, by comma: time_s, hbm_bytes, l2_read_bytes (the default), hbm_read_bytes, "
                 "hbm_write_bytes, l2_slice_read_bytes, l2_write_bytes, l2_reduction_bytes, l2_fabric_bytes")
      .delimiter(',')
      .type_name("NAME");
  sub.add_option("--fit", options->fit, "fit a calibration on the points not held out, write it and use it")
      .type_name("FILE");
  sub.add_option("--seed", options->seed, "of the draw of the held-out third (default 0)").type_name("N");
  sub.add_option("--hold-out", options->hold_out,
                 "what is drawn: points (default), or whole shapes, which a fit must extrapolate to")
      .type_name("points|shapes");
  add_table_options(sub, options->tables);
  sub.add_option("--data", options->data_folder,
                 "where snapshots and traces lie that rows name (default data)")
      .type_name("DIR");
  sub.add_option("--shared-size", options->shared_size,
                 "width of the shared MLP of rows that do not say (schema version 1; default 1024)")
      .type_name("N");
  add_simulator_options(sub, *options);
  sub.add_option("--threads", options->threads, "CPU threads (default: all)").type_name("N");
  sub.add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  sub.add_option("--output", options->output, "directory for the figure (default: none is drawn)")
      .type_name("DIR");
  return {sub, [options, invocation] { return validate_model(*options, invocation); }};
}

}  // namespace moescope
