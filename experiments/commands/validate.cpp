#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "experiments/calibration/validation_points.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

struct ValidateOptions : ValidationOptions {
  std::string fit;
  std::string output;
  TableOptions tables;
  int threads = 0;
};

void print_report(TableOutput& out, std::span<const Prediction> predictions,
                  const std::vector<std::string>& metrics, const std::vector<std::string>& skipped) {
  constexpr std::size_t kOutliers = 10;
  Table table = make_error_table();
  for (const std::string& metric : metrics) {
    if (std::ranges::count(predictions, metric, &Prediction::metric) == 0) {
      continue;
    }
    add_error_rows(table, predictions, metric, [](const Prediction&) { return std::string("all"); });
    if (const auto of_system = [](const Prediction& p) { return "system " + p.system; }; std::ranges::any_of(
            predictions, [&](const Prediction& p) { return p.system != predictions.front().system; })) {
      add_error_rows(table, predictions, metric, of_system);
    }
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
    if (std::ranges::count(predictions, metric, &Prediction::metric) == 0) {
      continue;
    }
    Table table = make_error_table();
    add_error_rows(table, predictions, metric, [](const Prediction&) { return std::string("all"); });
    if (!std::ranges::all_of(predictions, [](const Prediction& p) { return p.system == "omnimoe"; })) {
      add_error_rows(table, predictions, metric, [](const Prediction& p) { return p.system; });
    }
    add_error_rows(table, predictions, metric, [](const Prediction& p) { return p.stage; });
    out << table.markdown() << '\n';
  }
  out << target_text(predictions) << "\n";
}

constexpr const char* kPredictions = "predictions.csv";
constexpr const char* kValidationFigure = "validation";

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
  std::ranges::transform(options.files, std::back_inserter(files), rows_file);
  for (const MeasuredPoint& point : points) {
    const auto more = workload_files({recorded_workload(point.layer.workload, options.data_folder)});
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
    std::vector<std::string> names = figure_files(kValidationFigure);
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
  for (const std::string& name : options.systems) {
    (void)parse_system(name);
  }
  const DeviceSpec device =
      find_device(options.devices.empty() ? recorded_device(options.files) : options.devices.front());
  // A fit is of bounds, which no fit changes: the project's own may be fitted again.
  Calibration calibration = options.fit.empty() || !options.calibration.empty()
                                ? chosen_calibration(options, device)
                                : unfitted_calibration(options, device);
  std::vector<MeasuredPoint> points = measured_points(options);
  if (points.empty()) {
    throw InvalidArgument("rows", fmt::format("{}", fmt::join(options.files, " ")),
                          fmt::format("hold no measurement by the cuda backend, L2 cold, of {}",
                                      fmt::join(options.metrics, ", ")));
  }
  const Outputs outputs = claim_outputs(options, points);
  std::vector<std::string> skipped;
  std::vector<PointModel> models = model_points(points, options, device, calibration, skipped);
  std::vector<Prediction> predictions = predictions_of(models, options);
  if (outputs.fit) {
    calibration = fit_calibration(predictions, device.name, source_of_fit(options), calibration.constants);
    outputs.fit->write(calibration_json(calibration));
    for (PointModel& one : models) {
      calibrate(one.model, calibration);
    }
    predictions = predictions_of(models, options);
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
        validation_figure(predictions, device.name + ", modelled over measured"), folder, kValidationFigure);
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
  sub.footer(examples({"moescope validate results/h200/compare-*.jsonl.gz --output results/validation",
                       "moescope validate rows.jsonl --calibration none",
                       "moescope validate rows.jsonl --fit calibration.json --hold-out shapes --seed 7"}));
  sub.add_option("rows", options->files, "recorded rows.jsonl files").required().type_name("FILE");
  sub.add_option("--metric", options->metrics,
                 "quantities, by comma: time_s, hbm_bytes, l2_read_bytes (the default), hbm_read_bytes, "
                 "hbm_write_bytes, l2_slice_read_bytes, l2_write_bytes, l2_reduction_bytes, l2_fabric_bytes")
      .delimiter(',')
      .type_name("NAME");
  sub.add_option("--system", options->systems,
                 "kind of layer whose rows take part; may be repeated (default: all of them)")
      .type_name("NAME")
      .repeatable();
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
  sub.get_option("--device").description("the modelled device (default: the one that the rows are of)");
  sub.add_option("--threads", options->threads, "CPU threads (default: all)").type_name("N");
  sub.add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  sub.add_option("--output", options->output, "directory for the figure (default: none is drawn)")
      .type_name("DIR");
  return {sub, [options, invocation] { return validate_model(*options, invocation); }};
}

}  // namespace moescope
