#include "experiments/options/system_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/files/npy.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_options.hpp"
#include "core/systems/system_traits.hpp"
#include "core/systems/system_workload.hpp"
#include "core/workload/trace_file.hpp"

namespace moescope {
namespace {

bool asks_for(const CommonOptions& options, System system) {
  return options.systems.empty()
             ? system == System::kOmniMoe
             : std::ranges::find(options.systems, to_string(system)) != options.systems.end();
}

/// What the workload's file says, and a person did not: 0 until the shape is completed. A trace has no
/// widths, a snapshot of experts has theirs.
void leave_to_file(const WorkloadSpec& spec, SystemShape& shape) {
  const bool snapshot = spec.family == WorkloadSpec::Family::kSnapshot;
  if (!snapshot && spec.family != WorkloadSpec::Family::kTrace) {
    return;
  }
  shape.num_tokens = 0;
  shape.hidden_size = snapshot ? 0 : shape.hidden_size;
  if (snapshot && shape.has_ffn_experts()) {
    shape.expert_size = 0;
    shape.shared_size = 0;
  }
  if (shape.has_routing()) {
    shape.num_experts = 0;
    shape.top_k = 0;
    shape.heads = shape.has_product_keys() ? 0 : shape.heads;
  }
}

/// A trace that is of this system may say how wide its model is; a preset's widths stand where it does not.
void take_recorded_widths(const WorkloadSpec& spec, SystemShape& shape) {
  if (spec.family != WorkloadSpec::Family::kTrace || !shape.has_ffn_experts()) {
    return;
  }
  const TraceInfo info = trace_info(read_array_file(spec.path), spec.path);
  if (info.system != to_string(shape.system)) {
    return;
  }
  shape.hidden_size = info.hidden_size > 0 ? info.hidden_size : shape.hidden_size;
  shape.expert_size = info.expert_size > 0 ? info.expert_size : shape.expert_size;
  if (shape.has_dense_branch()) {
    shape.shared_size = info.shared_size > 0 ? info.shared_size : shape.shared_size;
  }
}

}  // namespace

void add_system_options(Cli app, CommonOptions& options) {
  const auto names = system_names([](const SystemTraits&) { return true; });
  const Cli group = app.add_option_group(
      "System",
      "The kind of layer. --preset, -L, -d, -K, --num-experts, --shared-size, --dtype, --activation (not "
      "pkm) "
      "and --gates hold for every kind, presets small and table-a exist for all; --grid and --group-size are "
      "omnimoe's; of --schedule, gshard and deepseekmoe have expert_centric (default), and on a cpu "
      "token_centric, dense_masked, padded:CAPACITY (GShard's capacity factor) and "
      "token_rounding[:nearest|up|down[:TILE]] (SonicMoE's); pkm and peer auto (default), token_centric, "
      "which gathers the rows of every pair, "
      "and dense_masked (cuda), products with all experts. An option that none of the systems asked "
      "for has is an error");
  group.add_option("--system", options.systems, fmt::format("{}; default omnimoe", fmt::join(names, ", ")))
      .type_name("NAME")
      .repeatable();
  add_request_options(group, options, RequestGroup::kSystem);
}

std::vector<ScheduleOptions> baseline_schedules(const CommonOptions& options, System system) {
  const SystemTraits& traits = traits_of(system);
  ScheduleOptions own = system_schedule(system);
  own.kind = ScheduleKind::kAuto;
  std::vector<ScheduleOptions> schedules;
  for (const std::string& text : options.schedules) {
    if (!traits.chooses_schedule) {
      continue;
    }
    const ScheduleOptions asked = parse_schedule(text);
    if (asked.kind == ScheduleKind::kAuto || traits.has(asked)) {
      ScheduleOptions& schedule = schedules.emplace_back(own);
      schedule.kind = asked.kind;
      schedule.tokens = asked.tokens;
    } else if (!asks_for(options, System::kOmniMoe)) {
      throw InvalidArgument("schedule", text,
                            fmt::format("must be one of {} for {}", traits.schedule_names(), traits.name));
    }
  }
  return schedules.empty() ? std::vector{own} : schedules;
}

System chosen_system(const CommonOptions& options) {
  if (options.systems.size() > 1) {
    throw InvalidArgument("system", fmt::format("{} of them", options.systems.size()),
                          "must be one here; compare takes several");
  }
  return options.systems.empty() ? System::kOmniMoe : parse_system(options.systems.front());
}

void require_meaningful(const CommonOptions& options) {
  std::vector<System> systems;
  for (const std::string& name : options.systems) {
    systems.push_back(parse_system(name));
  }
  if (systems.empty()) {
    systems.push_back(System::kOmniMoe);
  }
  const auto require = [&](const char* option, const std::string& value) {
    if (!value.empty()) {
      require_system_has(systems, option, value);
    }
  };
  require("schedule", fmt::format("{}", fmt::join(options.schedules, ", ")));
  for_each_request_field(options, [&](const RequestField& field, const auto& asked) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(asked)>, std::string>) {
      require(field.key, asked);
    } else {
      require(field.key, asked ? fmt::to_string(*asked) : "");
    }
  });
  for (const System system : systems) {
    if (system != System::kOmniMoe) {
      (void)baseline_schedules(options, system);
    }
  }
}

SystemShape resolve_system(const CommonOptions& options, System system, const WorkloadSpec& spec) {
  SystemShape shape = find_system_preset(system, options.preset.empty() ? "small" : options.preset).shape;
  if (options.preset.empty()) {
    leave_to_file(spec, shape);
    take_recorded_widths(spec, shape);
  }
  set_extent("num_tokens", options.num_tokens, 1, shape.num_tokens);
  set_extent("hidden_size", options.hidden_size, 1, shape.hidden_size);
  set_extent("num_experts", options.num_experts, 1, shape.num_experts);
  set_extent("top_k", options.top_k, 1, shape.top_k);
  set_extent("shared_size", options.shared_size, 0, shape.shared_size);
  const auto set_own = [&](const char* field, const std::optional<std::int64_t>& asked, std::int64_t& out) {
    if (system_has(system, field)) {
      set_extent(field, asked, 1, out);
    }
  };
  set_own("expert_size", options.expert_size, shape.expert_size);
  set_own("heads", options.heads, shape.heads);
  set_own("key_size", options.key_size, shape.key_size);
  if (!options.dtype.empty()) {
    shape.dtype = parse_dtype(options.dtype);
  }
  if (!options.activation.empty() && system_has(system, "activation")) {
    shape.activation = parse_activation(options.activation);
  }
  if (!options.gates.empty()) {
    shape.gate_mode = parse_gate_mode(options.gates);
  }
  shape = complete_shape(spec, shape);
  shape.validate();
  require_room(spec, shape);
  return shape;
}

NamedWorkload system_workload(const CommonOptions& options) {
  if (options.workloads.size() > 1) {
    throw InvalidArgument("workload", fmt::format("{} of them", options.workloads.size()),
                          "must be one beside --system");
  }
  return named_workload(options.workloads.empty() ? "gaussian:1" : options.workloads[0]);
}

SystemInputs make_system_inputs(const NamedWorkload& workload, const SystemShape& shape,
                                const CommonOptions& options) {
  require_host_memory(shape.label(), system_host_bytes(shape, workload.spec, options.backend, kJudgedTokens));
  SystemInputs inputs = make_workload(workload.spec, shape, options.seed);
  inputs.workload = workload.name;
  inputs.set_schedule(baseline_schedules(options, shape.system).front());
  return inputs;
}

Routing route_system(MoeBackend& backend, const SystemInputs& inputs) {
  if (inputs.fixed_routing) {
    return *inputs.fixed_routing;
  }
  const auto execution = backend.prepare_system(inputs);
  for (const Stage stage : {Stage::kRouterProject, Stage::kRouterSelect}) {
    execution->enqueue(stage);
  }
  execution->synchronize();
  return execution->routing();
}

}  // namespace moescope
