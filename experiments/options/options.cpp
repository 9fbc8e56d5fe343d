#include "experiments/options/options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/backend/l2_state.hpp"
#include "core/base/error.hpp"
#include "core/base/grid_text.hpp"
#include "core/base/host_memory.hpp"
#include "core/files/regular_file.hpp"
#include "core/schedule/schedule_info.hpp"
#include "core/systems/system_traits.hpp"
#include "core/workload/trace_file.hpp"

namespace moescope {
namespace {

constexpr const char* kRecordedLayer = "data/small_layer2.safetensors";

bool asks_for_shape(const CommonOptions& options) {
  return !options.preset.empty() || options.hidden_size || options.num_experts || !options.grid.empty();
}

std::int64_t square_side(std::int64_t num_experts) {
  const auto side = std::llround(std::sqrt(static_cast<double>(num_experts)));
  if (num_experts < 1 || side * side != num_experts) {
    throw InvalidArgument("num_experts", fmt::format("{}", num_experts),
                          "must be a square; name the sides of other grids with --grid ROWSxCOLS");
  }
  return side;
}

}  // namespace

void set_extent(const char* field, const std::optional<std::int64_t>& asked, std::int64_t minimum,
                std::int64_t& out) {
  if (!asked) {
    return;
  }
  if (*asked < minimum) {
    throw InvalidArgument(field, fmt::format("{}", *asked), fmt::format("must be >= {}", minimum));
  }
  out = *asked;
}

void add_request_options(Cli app, PointRequest& request, RequestGroup group) {
  for_each_request_field(request, [&](const RequestField& field, auto& value) {
    if (field.group == group) {
      app.add_option(field.options, value, field.about).type_name(field.type_name);
    }
  });
}

void add_shape_options(Cli app, CommonOptions& options) {
  std::string names;
  for (const Preset& preset : presets()) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", preset.name);
  }
  const Cli group =
      app.add_option_group("Shape", "What is not given comes from the preset or the workload's file");
  add_request_options(group, options, RequestGroup::kShape);
  const Option preset = group.get_option("--preset");
  preset.description("a named shape: " + names);
}

void add_workload_options(Cli app, CommonOptions& options) {
  app.add_option("--workload", options.workloads,
                 "where tokens and routing come from; may be repeated where several make sense. "
                 "Default: the recorded layer in data/, or gaussian:1 when a shape is given.\n" +
                     workload_help())
      .type_name("SPEC")
      .repeatable();
  app.add_option("--seed", options.seed, "seed of everything random (default 0)").type_name("N");
}

void add_schedule_options(Cli app, CommonOptions& options) {
  app.add_option("--schedule", options.schedules,
                 "token_centric, expert_centric, staircase, dense_masked, sparse_library or auto; "
                 "staircase:atomics need not be bit-repeatable, and is faster on a GPU; staircase:rows and "
                 "staircase:rows:atomics take grid rows alone, no columns; may be repeated")
      .type_name("NAME")
      .repeatable();
  add_request_options(app, options, RequestGroup::kSchedule);
}

void add_rank_options(Cli app, CommonOptions& options) {
  const Cli group = app.add_option_group(
      "Ranks", "GPUs that share the layer, a process for each; with --backend cpu ranks of one process");
  add_request_options(group, options, RequestGroup::kRanks);
}

void add_tuned_option(Cli app, CommonOptions& options) {
  app.add_option("--tuned-on", options.tuned_on,
                 "measure the schedule that auto chooses on this workload, too, kept as it is on all the "
                 "others: what does it lose when the routing becomes another?")
      .type_name("SPEC");
}

void add_machine_options(Cli app, CommonOptions& options) {
  app.add_option("--backend", options.backend, "cpu (default) or cuda").type_name("NAME");
  app.add_option("--threads", options.threads, "CPU threads (default: all)").type_name("N");
  app.add_flag("-q,--quiet", options.quiet, "no progress on standard error");
}

void add_sampling_options(Cli app, CommonOptions& options) {
  add_request_options(app, options, RequestGroup::kRun);
  add_sample_count_options(app, options);
}

void add_sample_count_options(Cli app, CommonOptions& options) {
  app.add_option(
         "--min-samples", options.min_samples,
         fmt::format("samples of each alternative (default {}; fewer for a quick look)", options.min_samples))
      .type_name("N");
  app.add_option("--max-time", options.max_time_s,
                 fmt::format("seconds of sampling, per workload where there are several, once the samples "
                             "asked for are there (default {:g})",
                             options.max_time_s))
      .type_name("S");
}

void add_explain_option(Cli app, CommonOptions& options) {
  app.add_flag("--explain", options.explain,
               "with schedule auto: the cost model's numbers for every candidate");
}

void add_output_option(Cli app, CommonOptions& options, const std::string& default_text) {
  app.add_option("--output", options.output,
                 "directory for rows.jsonl, rows.csv and run.json (" + default_text + ")")
      .type_name("DIR");
}

NamedWorkload named_workload(const std::string& text) {
  WorkloadSpec spec = WorkloadSpec::parse(text);
  std::string name = spec.text;
  if (from_file(spec)) {
    spec.path = find_workload_file(spec.path).string();
  }
  return {std::move(spec), std::move(name)};
}

NamedWorkload recorded_layer() {
  NamedWorkload layer = named_workload(fmt::format("snapshot:{}", kRecordedLayer));
  if (!file_exists(layer.spec.path)) {
    throw FileError(kRecordedLayer, "", "not found; run moescope where it lies, or name a --workload");
  }
  return layer;
}

std::vector<NamedWorkload> chosen_workloads(const CommonOptions& options) {
  std::vector<NamedWorkload> workloads;
  for (const std::string& text : options.workloads) {
    for (const std::string& layer : expand_trace_layers(text)) {
      workloads.push_back(named_workload(layer));
    }
  }
  if (workloads.empty()) {
    workloads.push_back(asks_for_shape(options) ? named_workload("gaussian:1") : recorded_layer());
  }
  return workloads;
}

LayerShape resolve_shape(const CommonOptions& options, const WorkloadSpec& spec) {
  LayerShape shape;
  if (!options.preset.empty()) {
    shape = find_preset(options.preset).shape;
  } else if (from_file(spec)) {
    shape.num_tokens = shape.hidden_size = shape.grid_rows = shape.grid_cols = shape.top_k = 0;
  }
  set_extent("num_tokens", options.num_tokens, 1, shape.num_tokens);
  set_extent("hidden_size", options.hidden_size, 1, shape.hidden_size);
  set_extent("top_k", options.top_k, 1, shape.top_k);
  set_extent("shared_size", options.shared_size, 0, shape.shared_size);
  if (options.num_experts && !options.grid.empty()) {
    throw InvalidArgument("num_experts", fmt::format("{}", *options.num_experts),
                          "cannot be given beside --grid");
  }
  if (options.num_experts) {
    shape.grid_rows = shape.grid_cols = square_side(*options.num_experts);
  }
  if (!options.grid.empty()) {
    const GridExtents grid = parse_grid(options.grid);
    set_extent("grid_rows", grid.rows, 1, shape.grid_rows);
    set_extent("grid_cols", grid.cols, 1, shape.grid_cols);
  }
  if (!options.dtype.empty()) {
    shape.dtype = parse_dtype(options.dtype);
  }
  if (!options.activation.empty()) {
    shape.activation = parse_activation(options.activation);
  }
  if (!options.gates.empty()) {
    shape.gate_mode = parse_gate_mode(options.gates);
  }
  shape = complete_shape(spec, shape);
  shape.validate();
  return shape;
}

LayerInputs make_inputs(const NamedWorkload& workload, const LayerShape& shape, std::uint64_t seed,
                        const LayerUse& use, std::shared_ptr<const ExpertWeights> experts) {
  require_host_memory(shape.label(), layer_host_bytes(shape, workload.spec, experts != nullptr, use));
  LayerInputs inputs = make_workload(workload.spec, shape, seed, std::move(experts));
  inputs.workload = workload.name;
  return inputs;
}

RankOptions rank_options(const CommonOptions& options) {
  RankOptions ranks;
  set_extent("ranks", options.ranks, 1, ranks.group.ranks);
  const auto needs_ranks = [&](const char* field, const std::string& value) {
    if (!value.empty() && !options.ranks) {
      throw InvalidArgument(field, value, "is for several ranks: --ranks");
    }
  };
  needs_ranks("placement", options.placement);
  needs_ranks("exchange", options.exchange);
  if (ranks.group.ranks > kMaxRunningRanks) {
    throw InvalidArgument("ranks", fmt::to_string(ranks.group.ranks),
                          fmt::format("must be from 1 to {}", kMaxRunningRanks));
  }
  if (ranks.several() && options.backend == "cuda") {
    ranks.placement.kind = PlacementKind::kStrips;  // what GPUs share
  }
  if (!options.placement.empty()) {
    ranks.placement = PlacementSpec::parse(options.placement);
  }
  if (!options.exchange.empty()) {
    ranks.exchange = parse_exchange(options.exchange);
  }
  return ranks;
}

namespace {

/// Whether one of the systems asked for may be given other pairs than its router's.
bool has_token_rules(const CommonOptions& options) {
  return std::ranges::any_of(
      options.systems, [](const std::string& name) { return traits_of(parse_system(name)).token_rules; });
}

}  // namespace

std::vector<ScheduleOptions> chosen_schedules(const CommonOptions& options) {
  std::vector<ScheduleOptions> schedules;
  schedules.reserve(options.schedules.size());
  for (const std::string& name : options.schedules) {
    const ScheduleOptions schedule = parse_schedule(name);
    if (schedule.tokens.every()) {
      schedules.push_back(schedule);
    } else if (!has_token_rules(options)) {
      const auto owners = system_names([](const SystemTraits& traits) { return traits.token_rules; });
      throw InvalidArgument("schedule", name, fmt::format("is for {}", fmt::join(owners, ", ")));
    }
  }
  if (schedules.empty()) {
    for (const ScheduleKind kind : named_schedules()) {
      schedules.push_back({.kind = kind});
    }
  }
  const RankOptions ranks = rank_options(options);
  for (ScheduleOptions& schedule : schedules) {
    schedule.ranks = ranks;
    set_extent("group_size", options.group_size, 1, schedule.group_size);
    schedule.tile_tokens = options.tile_tokens.value_or(schedule.tile_tokens);
    validate_tile_tokens(schedule.tile_tokens);
  }
  return schedules;
}

SamplingOptions sampling_options(const CommonOptions& options) {
  SamplingOptions sampling;
  if (!options.l2.empty()) {
    sampling.l2 = parse_l2_state(options.l2);
  }
  sampling.min_samples = options.min_samples;
  sampling.max_rounds = std::max(sampling.max_rounds, options.min_samples);
  sampling.max_time_s = options.max_time_s;
  sampling.validate();
  return sampling;
}

namespace {

/// Of a forward: nothing that a backward alone has.
void require_no_step(const PointRequest& request) {
  if (!request.gradients.empty()) {
    throw InvalidArgument("gradients", request.gradients, "are what a backward makes: --direction backward");
  }
  if (!request.optimizer.empty()) {
    throw InvalidArgument("optimizer", request.optimizer, "ends a backward: --direction backward");
  }
}

}  // namespace

Direction asked_direction(const PointRequest& request) {
  return request.direction.empty() ? Direction::kForward : parse_direction(request.direction);
}

std::optional<SaveMode> asked_save(const PointRequest& request) {
  if (request.save.empty()) {
    return std::nullopt;
  }
  if (asked_direction(request) == Direction::kForward) {
    throw InvalidArgument("save", request.save, "is what the backward reads: --direction backward");
  }
  return parse_save_mode(request.save);
}

std::optional<TrainingOptions> asked_training(const PointRequest& request) {
  const auto save = asked_save(request);
  if (asked_direction(request) == Direction::kForward) {
    require_no_step(request);
    return std::nullopt;
  }
  if (request.ranks.value_or(1) > 1) {
    throw InvalidArgument("direction", request.direction,
                          "is of one rank: on several there is the forward alone");
  }
  TrainingOptions training;
  training.save = save.value_or(training.save);
  if (!request.gradients.empty()) {
    training.form = parse_gradient_form(request.gradients);
  }
  if (!request.optimizer.empty()) {
    training.optimizer = parse_optimizer_form(request.optimizer);
  }
  validate_optimizer(training);
  return training;
}

void require_forward(const PointRequest& request, std::string_view why) {
  (void)asked_save(request);
  if (asked_direction(request) == Direction::kForward) {
    require_no_step(request);
  }
  if (asked_direction(request) != Direction::kForward) {
    throw InvalidArgument("direction", request.direction, why);
  }
}

void apply_threads(const CommonOptions& options) {
  // More threads than this only swap; it also keeps a slip of the keyboard from forking thousands.
  constexpr int kMaxThreads = 1024;
  if (options.threads < 0 || options.threads > kMaxThreads) {
    throw InvalidArgument("threads", fmt::format("{}", options.threads),
                          fmt::format("must be 0 (all) to {}", kMaxThreads));
  }
  if (options.threads > 0) {
    omp_set_num_threads(options.threads);
  }
}

Progress::Style progress_style(const CommonOptions& options) {
  if (options.quiet) {
    return Progress::Style::kSilent;
  }
  return stderr_is_terminal() ? Progress::Style::kTerminal : Progress::Style::kLines;
}

}  // namespace moescope
