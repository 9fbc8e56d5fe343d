#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "core/systems/system_cost.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/command.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/points/model_study.hpp"
#include "profiler/simulator/paper_comparison.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

constexpr std::int64_t kTokens = 4096;  ///< of the paper's comparison

struct PaperOptions : CommonOptions, SimulatorOptions {};

SystemShape table_a(System system) {
  SystemShape shape = find_system_preset(system, "table-a").shape;
  shape.num_tokens = kTokens;
  return shape;
}

/// Bounds of every baseline of Table A, with a row each.
class BaselineBounds {
 public:
  explicit BaselineBounds(const DeviceSpec& device) : device_(device) {}

  void add(System system) {
    const SystemShape shape = table_a(system);
    const StageBounds bounds = system_bound(shape, device_);
    Point point = layer_point(shape, modelled_backend(device_), "even", 0);
    point.set_schedule(system_schedule(system));
    point.l2_state = "cold";
    std::string parts;
    for (const auto& [stage, time_s] : bounds) {
      ResultRow row = value_row(point, stage, Source::kModelled, "bound_s", time_s, "s");
      row.reason = "roofline bound, not replayed; experts' load is even";
      rows_.push_back(std::move(row));
      if (stage != Stage::kLayer) {
        parts += fmt::format("{}{} {}", parts.empty() ? "" : ", ", to_string(stage), format_seconds(time_s));
      }
    }
    table_.add_row({shape.label(), seconds_cell(bounds.back().second), parts});
  }

  double layer_s(System system) const {
    for (const ResultRow& row : rows_) {
      if (row.system == to_string(system) && row.stage == to_string(Stage::kLayer)) {
        return *row.value;
      }
    }
    throw InternalError("no bound of that system");
  }
  const Table& table() const { return table_; }
  const std::vector<ResultRow>& rows() const { return rows_; }

 private:
  const DeviceSpec& device_;
  Table table_{{{"layer", Align::kLeft}, {"bound"}, {"of it", Align::kLeft, Need::kBelow}}};
  std::vector<ResultRow> rows_;
};

ExitCode paper(const PaperOptions& options, const Invocation& invocation) {
  apply_threads(options);
  if (options.devices.size() > 1) {
    throw InvalidArgument("device", fmt::format("{} of them", options.devices.size()), "must be one");
  }
  StandardTables out(options.tables);
  PaperModel model;
  model.device = find_device(options.devices.empty() ? "a100-sxm-80gb" : options.devices.front());
  model.peer = table_a(System::kPeer);
  ModelStudy study(chosen_calibration(options), replay_options(options));
  RunHeader header = run_header(invocation, *make_backend("cpu"));
  header.device = modelled_header(std::span(&model.device, 1));
  const auto writer = open_rows(options.output, std::move(header));
  const NamedWorkload workload = named_workload("gaussian:1");
  std::vector<ResultRow> rows;
  Progress progress(std::cerr, progress_style(options), 5);
  const auto simulate = [&](const LayerShape& shape, ScheduleKind kind) {
    progress.begin(fmt::format("{} {}", shape.label(), to_string(kind)));
    study.route(workload, shape, options.seed);
    const ModelledSchedule modelled = study.simulate({.kind = kind}, model.device);
    const auto more = model_rows(modelled.point, modelled.model);
    rows.insert(rows.end(), more.begin(), more.end());
    progress.advance();
    return modelled.model;
  };
  model.shape = find_preset("table-a-4096-512").shape;
  model.token_centric = simulate(model.shape, ScheduleKind::kTokenCentric);
  model.expert_centric = simulate(model.shape, ScheduleKind::kExpertCentric);
  model.staircase = simulate(model.shape, ScheduleKind::kStaircase);
  LayerShape other = model.shape;
  other.shared_size = 0;
  model.without_shared = simulate(other, ScheduleKind::kExpertCentric);
  other.top_k = model.peer.top_k;
  model.peer_gather = simulate(other, ScheduleKind::kTokenCentric);
  progress.finish();
  BaselineBounds bounds(model.device);
  for (const System system : systems()) {
    if (system != System::kOmniMoe) {
      bounds.add(system);
    }
  }
  model.peer_bound_s = bounds.layer_s(System::kPeer);
  model.deepseekmoe_bound_s = bounds.layer_s(System::kDeepSeekMoe);
  model.full_router_bound_s = full_router_bound(model.shape, model.device).back().second;
  const Table table = paper_table(paper_lines(model));
  out.text() << fmt::format(
      "{}, modelled; {} and Table A's smallest K, bf16, gaussian:1, seed {}, L2 cold\n\n", model.device.name,
      model.shape.label(), options.seed);
  out.show("paper", table);
  out.text() << "\nBaselines, roofline bounds (not simulated):\n\n";
  out.show("baselines", bounds.table());
  if (writer) {
    rows.insert(rows.end(), bounds.rows().begin(), bounds.rows().end());
    for (const ResultRow& row : rows) {
      writer->write(row);
    }
    out.text() << fmt::format("\nrows: {}/rows.jsonl, rows.csv\n", writer->directory().string());
  }
  return ExitCode::kOk;
}

}  // namespace

Command add_paper(Cli app, const Invocation& invocation) {
  auto options = std::make_shared<PaperOptions>();
  const Cli sub = app.add_subcommand(
      "paper", "the paper's A100 figures beside what the simulator says of the same shapes");
  sub.footer(examples({"moescope paper", "moescope paper --device h100-sxm --format md"}) +
             "\n\ndocs/simulator-studies.md explains each gap.");
  add_simulator_options(sub, *options);
  sub.get_option("--device").description("one modelled device (default a100-sxm-80gb)");
  sub.add_option("--seed", options->seed, "seed of everything random (default 0)").type_name("N");
  sub.add_option("--threads", options->threads, "CPU threads (default: all); results do not depend on it")
      .type_name("N");
  sub.add_flag("-q,--quiet", options->quiet, "no progress on standard error");
  add_table_options(sub, options->tables);
  add_output_option(sub, *options, "default: none are written");
  return {sub, [options, invocation] { return paper(*options, invocation); }};
}

}  // namespace moescope
