#include "experiments/options/system_options.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/systems/system_options.hpp"

namespace moescope {
namespace {

ScheduleKind parse_form(const std::string& text) {
  for (const ScheduleKind kind :
       {ScheduleKind::kAuto, ScheduleKind::kTokenCentric, ScheduleKind::kDenseMasked}) {
    if (text == to_string(kind)) {
      return kind;
    }
  }
  if (!text.empty()) {
    throw InvalidArgument("form", text, "must be auto, token_centric or dense_masked");
  }
  return ScheduleKind::kAuto;
}

}  // namespace

void add_system_options(Cli app, CommonOptions& options) {
  std::string names;
  for (const System system : systems()) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", to_string(system));
  }
  const Cli group = app.add_option_group(
      "System",
      "The kind of layer. --preset, -L, -d, -K, --num-experts, --shared-size, --dtype, --activation (not "
      "pkm) "
      "and --gates hold for every kind, presets small and table-a exist for all; --grid, --schedule and "
      "--group-size are omnimoe's. An option that none of the systems asked for has is an error");
  group.add_option("--system", options.systems, names + "; default omnimoe").type_name("NAME").repeatable();
  group.add_option("--expert-size", options.expert_size, "gshard, deepseekmoe: width of an expert")
      .type_name("N");
  group.add_option("--heads", options.heads, "pkm, peer: heads; each selects K / heads experts")
      .type_name("N");
  group.add_option("--key-size", options.key_size, "pkm, peer: width of a sub-key").type_name("N");
  group
      .add_option("--form", options.form,
                  "pkm, peer: token_centric gathers the rows of every pair, dense_masked (cuda) is products "
                  "with all experts; default: what the backend takes for the faster")
      .type_name("NAME");
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
  const auto require_count = [&](const char* option, const std::optional<std::int64_t>& value) {
    require(option, value ? fmt::to_string(*value) : "");
  };
  require("activation", options.activation);
  require("grid", options.grid);
  require("schedule", fmt::format("{}", fmt::join(options.schedules, ", ")));
  require_count("group_size", options.group_size);
  require_count("tile_tokens", options.tile_tokens);
  require_count("expert_size", options.expert_size);
  require_count("heads", options.heads);
  require_count("key_size", options.key_size);
  require("form", options.form);
  (void)parse_form(options.form);
}

SystemShape resolve_system(const CommonOptions& options, System system) {
  SystemShape shape = find_system_preset(system, options.preset.empty() ? "small" : options.preset).shape;
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
  shape.validate();
  return shape;
}

NamedWorkload system_workload(const CommonOptions& options) {
  if (options.workloads.size() > 1) {
    throw InvalidArgument("workload", fmt::format("{} of them", options.workloads.size()),
                          "must be one beside --system");
  }
  WorkloadSpec spec = WorkloadSpec::parse(options.workloads.empty() ? "gaussian:1" : options.workloads[0]);
  std::string name = spec.text;
  return {std::move(spec), std::move(name)};
}

SystemInputs make_system_inputs(const NamedWorkload& workload, const SystemShape& shape,
                                const CommonOptions& options) {
  if (workload.spec.family != WorkloadSpec::Family::kGaussian) {
    throw InvalidArgument("workload", workload.spec.text, "must be gaussian:STD for a baseline system");
  }
  require_host_memory(shape.label(), system_host_bytes(shape, options.backend, kJudgedTokens));
  SystemInputs inputs = make_system_inputs(shape, workload.spec.parameters.front(), options.seed);
  inputs.workload = workload.name;
  inputs.schedule = shape.has_product_keys() ? parse_form(options.form) : ScheduleKind::kAuto;
  return inputs;
}

}  // namespace moescope
