#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "core/devices/device_folders.hpp"
#include "core/devices/gpu_rates.hpp"
#include "core/files/project_path.hpp"
#include "core/files/regular_file.hpp"
#include "experiments/calibration/rate_study.hpp"
#include "experiments/calibration/validation_points.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/table_options.hpp"
#include "profiler/calibration/fit_rates.hpp"
#include "profiler/calibration/rate_points.hpp"
#include "profiler/limits/ceilings.hpp"
#include "profiler/simulator/measured_device.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// What the command makes, in this order: the others need the device.
constexpr std::array kParts = {kDeviceFile, kRatesFile, kCalibrationFile};

struct CalibrateOptions : CommonOptions {
  ValidationOptions validation;  ///< its files: --rows
  std::vector<std::string> held_out;
  std::vector<std::string> parts;
  std::string like;
  std::string record;
  bool recorded = false;

  bool wants(const char* part) const {
    return parts.empty() ||
           std::ranges::any_of(parts, [&](const std::string& name) { return part == name + ".json"; });
  }
};

/// The device, where what is known of it comes from and goes to.
struct Subject {
  std::string name;                     ///< as rows' headers have it
  std::unique_ptr<MoeBackend> backend;  ///< null: from rows alone
  std::vector<std::vector<RecordedRun>> files;
  std::optional<RunHeader> header;  ///< of what is measured
  fs::path folder;
};

/// A part as text, or why there is none.
struct Part {
  std::string text = {};
  std::string why_not = {};
  std::string about = {};  ///< for the terminal
};

bool is_of_gpu(const RecordedRun& run) { return run.header.machine.contains("num_sms"); }

/// The GPU here, unless rows are to be enough.
std::unique_ptr<MoeBackend> find_gpu(const CalibrateOptions& options) {
  if (options.recorded) {
    return nullptr;
  }
  try {
    return make_backend("cuda");
  } catch (const NoDevice& error) {
    if (options.validation.files.empty()) {
      throw;
    }
    std::cout << fmt::format("from rows alone: {}\n", one_line(error.what()));
    return nullptr;
  }
}

/// Where the device's folder is, or will be.
fs::path folder_for(const std::string& output, const std::string& device) {
  if (!output.empty()) {
    return output;
  }
  const std::vector<DeviceFolder> folders = project_devices();
  if (const DeviceFolder* const own = folder_of(folders, device)) {
    return own->path;
  }
  return project_path(kDevicesFolder).value_or(kDevicesFolder) / folder_name(device);
}

Subject find_subject(const CalibrateOptions& options, const Invocation& invocation) {
  Subject subject;
  for (const std::string& file : options.validation.files) {
    subject.files.push_back(read_rows(file));
  }
  subject.backend = find_gpu(options);
  if (subject.backend) {
    subject.header = run_header(invocation, *subject.backend);
    subject.name = subject.header->device;
  }
  for (const std::vector<RecordedRun>& runs : subject.files) {
    for (const RecordedRun& run : runs) {
      if (!is_of_gpu(run)) {
        continue;
      }
      if (!subject.name.empty() && subject.name != run.header.device) {
        throw InvalidArgument("rows", run.header.device,
                              fmt::format("must be of one device, and {} is another", subject.name));
      }
      subject.name = run.header.device;
    }
  }
  if (subject.name.empty()) {
    throw InvalidArgument("rows", fmt::format("{}", fmt::join(options.validation.files, " ")),
                          "must hold runs on a GPU");
  }
  subject.folder = folder_for(options.output, subject.name);
  return subject;
}

/// What gives the values that nobody measures: the named device, this one as it is known, or the nearest.
DeviceSpec like_device(const CalibrateOptions& options, const Subject& subject, const GpuTraits& gpu) {
  if (!options.like.empty()) {
    return find_device(options.like);
  }
  const std::vector<DeviceFolder> folders = project_devices();
  const DeviceFolder* like = folder_of(folders, subject.name);
  like = like != nullptr ? like : nearest_folder(folders, gpu, kDeviceFile);
  if (like == nullptr) {
    throw InvalidArgument("like", "",
                          "must name the device that has what nobody measures: no folder here has");
  }
  return read_device(like->path / kDeviceFile);
}

/// The device as its folder has it already.
std::optional<DeviceSpec> known_device(const Subject& subject) {
  if (const fs::path file = subject.folder / kDeviceFile; file_exists(file)) {
    return read_device(file);
  }
  const std::vector<DeviceFolder> folders = project_devices();
  const DeviceFolder* const own = folder_of(folders, subject.name);
  return own != nullptr ? std::optional(read_device(own->path / kDeviceFile)) : std::nullopt;
}

GpuTraits traits_of(const RunHeader& header) {
  const auto number = [&](const char* key) {
    const auto found = header.machine.find(key);
    return found == header.machine.end() ? 0 : static_cast<std::int64_t>(found->second);
  };
  return {.name = header.device,
          .compute_capability = number("compute_capability"),
          .num_sms = number("num_sms"),
          .l2_bytes = number("l2_bytes"),
          .memory_bytes = number("device_memory_bytes")};
}

void keep_rows(ResultWriter* writer, const std::vector<ResultRow>& rows) {
  for (const ResultRow& row : rows) {
    if (writer != nullptr) {
      writer->write(row);
    }
  }
}

Part make_device(const CalibrateOptions& options, const Subject& subject, ResultWriter* writer,
                 std::optional<DeviceSpec>& device) {
  std::optional<DeviceCeilings> ceilings;
  RunHeader header;
  if (subject.backend) {
    SamplingOptions sampling = sampling_options(options);
    ceilings = measure_ceilings(make_ceiling_probes("cuda"), subject.name, sampling);
    header = *subject.header;
    keep_rows(writer, ceiling_rows(*ceilings, subject.backend->name()));
  } else {
    for (const std::vector<RecordedRun>& runs : subject.files) {
      for (const RecordedRun& run : runs) {
        if (auto found = is_of_gpu(run) ? recorded_ceilings({run}) : std::nullopt) {
          ceilings = std::move(found);
          header = run.header;
        }
      }
    }
  }
  if (!ceilings) {
    return {.why_not = "the rows hold no ceilings (moescope ceilings)"};
  }
  const DeviceSpec like = like_device(options, subject, traits_of(header));
  device = measured_device(*ceilings, header, like);
  return {
      .text = device_json(*device),
      .about = fmt::format("ceilings of run {}; what nobody measures as {}\n\n{}", one_line(header.run_id),
                           like.name, ceilings_table(*ceilings).text(stdout_width()))};
}

/// The files and revisions that points come from.
std::string rows_text(const CalibrateOptions& options, const Subject& subject) {
  if (subject.backend) {
    return fmt::format("run {} (revision {})", subject.header->run_id,
                       subject.header->git_revision.substr(0, 7));
  }
  std::vector<std::string> names;
  for (std::size_t i = 0; i < subject.files.size(); ++i) {
    std::set<std::string> revisions;
    for (const RecordedRun& run : subject.files[i]) {
      if (std::ranges::any_of(run.rows, [](const ResultRow& row) { return row.schedule != "none"; })) {
        revisions.insert(run.header.git_revision.substr(0, 7));
      }
    }
    if (revisions.empty()) {
      continue;  // ceilings
    }
    names.push_back(fmt::format("{} (revision {})", fs::path(options.validation.files[i]).filename().string(),
                                fmt::join(revisions, ", ")));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

Part make_rates(const CalibrateOptions& options, const Subject& subject, ResultWriter* writer,
                const std::optional<DeviceSpec>& device) {
  if (!device) {
    return {.why_not = "no device.json, whose ceilings bound the rates"};
  }
  RatePoints points;
  if (subject.backend) {
    RecordedRun run;
    run.header = *subject.header;
    run.rows = rate_study_rows(*subject.backend, options);
    keep_rows(writer, run.rows);
    points = rate_points(std::array{std::vector{std::move(run)}});
  } else {
    points = rate_points(subject.files);
    const bool any = std::ranges::any_of(points.points, [](const auto& point) {
      return std::ranges::any_of(point.second.schedules,
                                 [](const auto& schedule) { return schedule.second.time_s > 0; });
    });
    if (!any) {
      return {.why_not = "the rows hold no times of schedules (moescope compare)"};
    }
  }
  const DeviceCeilingRates ceilings{.memory_bytes_per_s = device->hbm_read_bytes_per_s,
                                    .cache_bytes_per_s = device->l2_bytes_per_s,
                                    .matrix_flop_per_s = device->tensor_bf16_flop_per_s,
                                    .fp32_flop_per_s = device->fp32_flop_per_s};
  RateFit fit;
  try {
    fit = fit_rates(points, ceilings);
  } catch (const InvalidArgument& error) {  // too few points
    return {.why_not = error.what()};
  }
  std::string about = fit_text(fit) + loss_text("fitted", choice_loss(points, fit.schedules, fit.selection));
  if (!options.held_out.empty()) {
    const std::vector<fs::path> files(options.held_out.begin(), options.held_out.end());
    RatePoints others = read_rate_points(files);
    std::erase_if(others.points, [&](const auto& point) { return points.points.contains(point.first); });
    about += loss_text("held out", choice_loss(others, fit.schedules, fit.selection));
  }
  GpuRates rates{.device = subject.name,
                 .source = fmt::format("fitted to {} points recorded on {}", fit.points, subject.name),
                 .rows = rows_text(options, subject),
                 .schedules = fit.schedules,
                 .selection = fit.selection,
                 .product_keys = std::nullopt};
  if (const fs::path before = subject.folder / kRatesFile; file_exists(before)) {
    rates.product_keys = read_gpu_rates(before).product_keys;  // measured by other means
  }
  return {.text = gpu_rates_json(rates), .about = about};
}

Part make_calibration(const CalibrateOptions& options, const std::optional<DeviceSpec>& device) {
  if (options.validation.files.empty()) {
    return {.why_not = "no recorded validation set (--rows; scripts/record_validation.sh records one)"};
  }
  if (!device) {
    return {.why_not = "no device.json to simulate"};
  }
  std::vector<MeasuredPoint> points = measured_points(options.validation);
  if (points.empty()) {
    return {.why_not = "the rows hold no stage times, L2 cold"};
  }
  std::vector<std::string> skipped;
  const Calibration before = unfitted_calibration(options.validation, *device);
  const std::vector<PointModel> models = model_points(points, options.validation, *device, before, skipped);
  const std::vector<Prediction> predictions = predictions_of(models, options.validation);
  if (predictions.empty()) {
    return {.why_not = "no point of the rows could be simulated"};
  }
  const Calibration calibration =
      fit_calibration(predictions, device->name, source_of_fit(options.validation), before.constants);
  std::string about = fmt::format(
      "{} kernels' fits from {} points; constants of the streams are carried over with their sources\n",
      calibration.fits.size(), points.size());
  for (const std::string& line : skipped) {
    about += fmt::format("not predicted: {}\n", one_line(line));
  }
  return {.text = calibration_json(calibration), .about = std::move(about)};
}

/// Before anything is measured: that every part can be written, and is none of the files that are read.
std::vector<OutputFile> claim_parts(const CalibrateOptions& options, const Subject& subject) {
  std::vector<fs::path> kept;
  std::ranges::transform(options.validation.files, std::back_inserter(kept), rows_file);
  std::ranges::transform(options.held_out, std::back_inserter(kept), rows_file);
  if (auto like = options.like.empty() ? std::nullopt : device_file(options.like)) {
    kept.push_back(*std::move(like));
  }
  std::vector<OutputFile> files;
  for (const char* const part : kParts) {
    if (options.wants(part)) {
      files.emplace_back("output", subject.folder / part, kept);
    }
  }
  return files;
}

ExitCode calibrate(CalibrateOptions& options, const Invocation& invocation) {
  apply_threads(options);
  for (const std::string& part : options.parts) {
    if (std::ranges::none_of(kParts, [&](const char* known) { return known == part + ".json"; })) {
      throw InvalidArgument("part", part, "must be device, rates or calibration");
    }
  }
  parse_hold_out(options.validation.hold_out);
  options.validation.metrics = {"time_s"};
  options.validation.quiet = options.quiet;
  const Subject subject = find_subject(options, invocation);
  const OutputFolder folder(subject.folder);
  const std::vector<OutputFile> files = claim_parts(options, subject);
  const auto writer = subject.backend ? open_rows(options.record, *subject.header) : nullptr;

  std::optional<DeviceSpec> device = known_device(subject);
  std::map<std::string, Part> made;
  if (options.wants(kDeviceFile)) {
    made[kDeviceFile] = make_device(options, subject, writer.get(), device);
  }
  if (options.wants(kRatesFile)) {
    made[kRatesFile] = make_rates(options, subject, writer.get(), device);
  }
  if (options.wants(kCalibrationFile)) {
    made[kCalibrationFile] = make_calibration(options, device);
  }
  for (const auto& [name, part] : made) {
    if (part.text.empty() && !options.parts.empty()) {
      throw InvalidArgument("part", name.substr(0, name.find('.')), "cannot be made: " + part.why_not);
    }
  }
  if (std::ranges::all_of(made, [](const auto& part) { return part.second.text.empty(); })) {
    throw InvalidArgument("rows", fmt::format("{}", fmt::join(options.validation.files, " ")),
                          "hold nothing to calibrate with: " + made.begin()->second.why_not);
  }
  std::cout << fmt::format("{}: {}\n", one_line(subject.name), subject.folder.string());
  for (const OutputFile& file : files) {
    const Part& part = made.at(file.path().filename());
    if (part.text.empty()) {
      std::cout << fmt::format("\n{} not made: {}\n", file.path().filename().string(), part.why_not);
      continue;
    }
    file.write(part.text);
    std::cout << fmt::format("\n{}: {}", file.path().filename().string(), part.about);
  }
  if (writer) {
    std::cout << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_calibrate(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<CalibrateOptions>();
  options->backend = "cuda";
  options->seed = 1;
  options->max_time_s = 1;
  options->validation.max_accesses = 1'000'000;
  const Cli sub = app.add_subcommand("calibrate",
                                     "what is known of a GPU, as its folder in data/devices: ceilings, rates "
                                     "for auto, fits of the simulator");
  sub.footer(examples(
      {"moescope calibrate --rows results/h100/validation.jsonl.gz --record results/calibrate",
       "moescope calibrate --recorded --rows results/h200/ceilings.jsonl results/h200/compare-*.jsonl.gz",
       "moescope calibrate --recorded --rows results/h100/validation.jsonl.gz --part calibration --output "
       "my-device"}));
  sub.add_option(
         "--rows", options->validation.files,
         "recorded rows: what the simulator is calibrated with, and without a GPU everything: ceilings, "
         "times of schedules, stage times")
      .type_name("FILE");
  sub.add_option("--part", options->parts,
                 "make these only, by comma: device, rates, calibration (default: all that can be made); one "
                 "that cannot is an error then")
      .delimiter(',')
      .type_name("NAME");
  sub.add_flag("--recorded", options->recorded, "measure nothing, though a GPU may be here");
  sub.add_option("--held-out", options->held_out, "recorded rows that the rates are judged by, not fitted to")
      .type_name("FILE");
  sub.add_option("--like", options->like,
                 "the device that gives what nobody measures: latencies, ways, L1 (default: this one's own "
                 "folder, else the nearest)")
      .type_name("NAME|PATH");
  sub.add_option("--output", options->output,
                 "the folder to write (default: the device's in data/devices, or a new one there)")
      .type_name("DIR");
  sub.add_option("--record", options->record, "directory for the measured rows (default: none are kept)")
      .type_name("DIR");
  sub.add_option("--hold-out", options->validation.hold_out,
                 "points (default) or shapes: a third of them is not fitted to, so that validate can judge")
      .type_name("points|shapes");
  sub.add_option("--seed", options->validation.seed, "of the draw of the held-out third (default 0)")
      .type_name("N");
  sub.add_option("--max-accesses", options->validation.max_accesses,
                 "cache line accesses to replay at most for each point (default 1000000)")
      .type_name("N");
  sub.add_option("--data", options->validation.data_folder,
                 "where snapshots and traces lie that rows name (default data)")
      .type_name("DIR");
  sub.add_option("--threads", options->threads, "CPU threads (default: all)").type_name("N");
  sub.add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  add_sample_count_options(sub, *options);
  return {sub, [options, invocation] { return calibrate(*options, invocation); }};
}

}  // namespace moescope
