#include "experiments/points/sweep_points.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "core/base/command_text.hpp"
#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/systems/system_options.hpp"
#include "core/systems/system_traits.hpp"
#include "experiments/options/system_options.hpp"

namespace moescope {
namespace {

/// A command line as it grows; what is empty is left out.
class ReproCommand {
 public:
  explicit ReproCommand(std::string command) : text_(std::move(command)) {}

  void add(std::string_view option, const std::string& value) {
    if (!value.empty()) {
      text_ += fmt::format(" {} {}", option, shell_word(value));
    }
  }
  void add_count(std::string_view option, const std::optional<std::int64_t>& value) {
    add(option, value ? fmt::format("{}", *value) : "");
  }
  /// What says how it is measured.
  void add_run(const CommonOptions& options) {
    for_each_request_field(options, [&](const RequestField& field, const auto& asked) {
      if (field.group == RequestGroup::kRun) {
        add_field(field, asked);
      }
    });
  }
  /// What says which layer it is: shape, workload, schedules.
  void add_layer(const CommonOptions& options) {
    add_batch(options);
    const System system = chosen_system(options);
    if (system == System::kOmniMoe) {
      for (const ScheduleOptions& schedule : chosen_schedules(options)) {
        add("--schedule", to_string(schedule));
      }
    } else if (system_has(system, "schedule")) {
      for (const std::string& schedule : options.schedules) {
        add("--schedule", schedule);
      }
    }
  }
  /// Shape and workload alone.
  void add_batch(const CommonOptions& options) {
    const System system = chosen_system(options);
    add("--system", system == System::kOmniMoe ? "" : std::string(to_string(system)));
    for_each_request_field(options, [&](const RequestField& field, const auto& asked) {
      if (field.group != RequestGroup::kRun && system_has(system, field.key)) {
        add_field(field, asked);
      }
    });
    for (const std::string& workload : options.workloads) {
      add("--workload", workload);
    }
    add("--seed", fmt::format("{}", options.seed));
  }
  const std::string& text() const { return text_; }

 private:
  template <class Value>
  void add_field(const RequestField& field, const Value& asked) {
    const std::string_view names = field.options;
    const std::string_view option = names.substr(0, names.find(','));
    if constexpr (std::is_same_v<Value, std::string>) {
      add(option, asked);
    } else {
      add_count(option, asked);
    }
  }

  std::string text_;
};

/// Those of `schedules` that the system has.
std::vector<std::string> own_of(const std::vector<std::string>& schedules, System system) {
  const SystemTraits& traits = traits_of(system);
  std::vector<std::string> own;
  for (const std::string& text : schedules) {
    const ScheduleOptions schedule = parse_schedule(text);
    if (traits.chooses_schedule && (schedule.kind == ScheduleKind::kAuto || traits.has(schedule))) {
      own.push_back(text);
    }
  }
  return own;
}

/// What asks for the layer of a study. Snapshots have their shape.
CommonOptions options_of(const LayerStudy& study) {
  CommonOptions options;
  options.workloads = {study.workload};
  options.seed = study.seed;
  if (study.save) {
    options.direction = to_string(Direction::kBackward);
    options.save = to_string(*study.save);
    if (study.gradients != GradientForm::kStored) {
      options.gradients = to_string(study.gradients);
    }
    if (study.optimizer != OptimizerForm::kNone) {
      options.optimizer = to_string(study.optimizer);
    }
  }
  if (study.workload.starts_with("snapshot:")) {
    return options;
  }
  const LayerShape& shape = study.shape;
  options.num_tokens = shape.num_tokens;
  options.hidden_size = shape.hidden_size;
  options.grid = fmt::format("{}x{}", shape.grid_rows, shape.grid_cols);
  options.top_k = shape.top_k;
  options.shared_size = shape.shared_size;
  const LayerShape usual;
  if (shape.dtype != usual.dtype) {
    options.dtype = to_string(shape.dtype);
  }
  if (shape.activation != usual.activation) {
    options.activation = to_string(shape.activation);
  }
  if (shape.gate_mode != usual.gate_mode) {
    options.gates = to_string(shape.gate_mode);
  }
  return options;
}

}  // namespace

std::string run_command(const LayerStudy& study, const ScheduleOptions& schedule) {
  const CommonOptions options = options_of(study);
  ReproCommand command("moescope run");
  command.add_batch(options);
  command.add("--schedule", to_string(schedule));
  command.add_run(options);
  return command.text();
}

std::string simulate_command(const LayerStudy& study) {
  ReproCommand command("moescope simulate");
  command.add_batch(options_of(study));
  return command.text();
}

CommonOptions point_options(const Experiment& experiment, const ExperimentPoint& point,
                            const CommonOptions& machine) {
  CommonOptions options = machine;
  options.systems = {point.system};
  static_cast<PointRequest&>(options) = point;
  options.workloads = {point.workload.empty() ? std::string("gaussian:1") : point.workload};
  if (parse_system(point.system) == System::kOmniMoe) {
    options.schedules = experiment.schedules;
    options.tuned_on = experiment.tuned_on;
  } else {
    options.schedules = own_of(experiment.baseline_schedules, parse_system(point.system));
  }
  if (point.seed) {
    options.seed = static_cast<std::uint64_t>(*point.seed);
  }
  if (experiment.min_samples) {
    options.min_samples = *experiment.min_samples;
  }
  if (experiment.max_time_s) {
    options.max_time_s = *experiment.max_time_s;
  }
  return options;
}

std::string repro_command(const CommonOptions& options) {
  ReproCommand command("moescope compare");
  command.add_layer(options);
  command.add("--tuned-on", options.tuned_on);
  command.add("--backend", options.backend);
  command.add("--threads", options.threads > 0 ? fmt::format("{}", options.threads) : "");
  command.add_run(options);
  command.add_count("--min-samples", options.min_samples);
  command.add("--max-time", fmt::format("{}", options.max_time_s));
  return command.text();
}

std::string model_repro_command(const CommonOptions& options, const SimulatorOptions& simulator) {
  ReproCommand command("moescope simulate");
  command.add_layer(options);
  command.add("--direction", options.direction);
  command.add("--save", options.save);
  command.add("--device", fmt::format("{}", fmt::join(simulator.devices, ",")));
  command.add("--calibration", simulator.calibration);
  command.add_count("--max-accesses", simulator.max_accesses);
  return command.text();
}

Shard parse_shard(std::string_view text) {
  const auto slash = std::min(text.find('/'), text.size());
  const auto index = parse_number<std::uint64_t>(text.substr(0, slash));
  const auto count = parse_number<std::uint64_t>(text.substr(std::min(slash + 1, text.size())));
  if (!index || !count || *index < 1 || *index > *count) {
    throw InvalidArgument("shard", text,
                          "must be I/N with I from 1 to N, e.g. 2/8: decimal, without leading zeros");
  }
  return {*index, *count};
}

double parse_threshold(const std::string& text) {
  const bool percent = text.ends_with('%');
  const std::string_view number(text.data(), text.size() - (percent ? 1 : 0));
  const auto value = parse_number<double>(number);
  // 5 may be meant as 5 % as well as 500 %.
  if (!value || *value < 0 || (!percent && *value >= 1)) {
    throw InvalidArgument("threshold", text, "must be percents, e.g. 5%, or a share below 1, e.g. 0.05");
  }
  return percent ? *value / 100 : *value;
}

}  // namespace moescope
