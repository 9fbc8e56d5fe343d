#include "experiments/points/check_systems.hpp"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/caught_error.hpp"
#include "core/base/line_text.hpp"
#include "core/systems/system_cost.hpp"
#include "experiments/options/backends.hpp"
#include "experiments/options/outputs.hpp"
#include "experiments/options/system_options.hpp"
#include "profiler/study/layer_rows.hpp"
#include "reference/oracle/system_oracle.hpp"

namespace moescope {
namespace {

bool describes_a_shape(const CommonOptions& options) {
  return !options.preset.empty() || options.num_tokens || options.hidden_size || options.num_experts ||
         options.top_k || options.shared_size || options.expert_size || options.heads || options.key_size ||
         !options.dtype.empty() || !options.activation.empty() || !options.gates.empty();
}

/// Shapes whose extents are no multiples of a tile, one token, K = 1, and more than a tile of rows per
/// expert; of product keys also one with so large a K that products with all experts are the faster form.
std::vector<SystemShape> awkward_shapes(System system) {
  std::vector<SystemShape> shapes;
  const auto add = [&](std::int64_t num_tokens, std::int64_t hidden_size, std::int64_t per_head) {
    SystemShape shape = find_system_preset(system, "small").shape;
    shape.num_tokens = num_tokens;
    shape.hidden_size = hidden_size;
    if (shape.has_routing()) {
      shape.top_k = per_head * shape.heads;
    }
    shapes.push_back(shape);
  };
  add(1, 256, 3);
  add(300, 264, 7);
  add(1030, 256, 1);
  if (shapes.front().has_product_keys()) {
    add(1030, 256, 250);
  }
  return shapes;
}

std::vector<SystemShape> shapes_of(const CommonOptions& options, System system, bool full,
                                   const WorkloadSpec& spec) {
  if (describes_a_shape(options) || from_file(spec)) {
    return {resolve_system(options, system, spec)};
  }
  std::vector<SystemShape> shapes;
  for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
    for (SystemShape shape : awkward_shapes(system)) {
      shape.dtype = dtype;
      shapes.push_back(shape);
    }
  }
  if (full) {
    const SystemShape base = find_system_preset(system, "table-a").shape;
    SystemShape most = base;
    for (const SystemPreset& preset : system_presets(system)) {
      most = preset.shape.top_k > most.top_k ? preset.shape : most;
    }
    SystemShape long_batch = base;
    long_batch.num_tokens = 4096;
    shapes.push_back(base);
    if (most.top_k > base.top_k) {
      shapes.push_back(most);
    }
    shapes.push_back(long_batch);
  }
  return shapes;
}

Point point_of(const SystemInputs& inputs, const ScheduleOptions& ran, const MoeBackend& backend) {
  Point point = layer_point(inputs.shape, backend.name(), inputs.workload, inputs.seed);
  point.schedule = inputs.shape.has_routing() ? to_string(ran) : "none";
  point.l2_state = to_string(L2State::kWarm);
  return point;
}

struct Tally {
  std::int64_t passed = 0;
  std::int64_t failed = 0;
  std::int64_t skipped = 0;
  bool no_memory = false;  ///< a point did not fit
  std::string failures;    ///< a line each, said again at the end
};

std::string line_of(const char* verdict, const SystemShape& shape, const std::string& rest) {
  return fmt::format("{:<7}  {:<36} {:<5} {}\n", verdict, shape.label(), to_string(shape.dtype),
                     one_line(rest));
}

void check_shape(MoeBackend& backend, const SystemShape& shape, const ScheduleOptions& schedule,
                 const NamedWorkload& workload, const CommonOptions& options, std::int64_t sampled_tokens,
                 ResultWriter* writer, Tally& tally) {
  std::optional<SystemInputs> inputs;
  std::optional<SystemCheck> check;
  std::string why;
  try {
    inputs.emplace(make_system_inputs(workload, shape, options));
    inputs->set_schedule(schedule);
    check = check_system(backend, *inputs, sampled_tokens);
  } catch (...) {
    // Invalid to the backend: shapes are resolved, hence valid, by now.
    const CaughtError error = caught_error();
    if (error.code != ExitCode::kOutOfMemory && error.code != ExitCode::kInvalidArgument) {
      throw;
    }
    why = error.message;
    tally.no_memory = tally.no_memory || error.code == ExitCode::kOutOfMemory;
  }
  if (!check) {
    ++tally.skipped;
    std::cout << line_of("skipped", shape, why) << std::flush;
    if (writer != nullptr && inputs) {
      const ScheduleOptions own = inputs->schedule_options();
      writer->write(absent_row(point_of(*inputs, own, backend), Stage::kLayer, Source::kMeasured,
                               "relative_error", "fraction", Status::kSkipped, why));
    }
    return;
  }
  const bool passed = check->passed();
  ++(passed ? tally.passed : tally.failed);
  const std::string line =
      line_of(passed ? "ok" : "FAILED", shape,
              shape.has_product_keys() ? fmt::format("{}: {}", to_string(check->ran), check->describe())
                                       : check->describe());
  std::cout << line << std::flush;
  tally.failures += passed ? "" : line;
  if (writer != nullptr) {
    const Point context = point_of(*inputs, {.kind = check->ran, .tokens = check->tokens}, backend);
    writer->write(passed ? value_row(context, Stage::kLayer, Source::kMeasured, "relative_error",
                                     check->error.relative_error, "fraction")
                         : absent_row(context, Stage::kLayer, Source::kMeasured, "relative_error", "fraction",
                                      Status::kFailed, check->describe()));
  }
}

}  // namespace

ExitCode check_systems(const CommonOptions& options, bool full, std::int64_t sampled_tokens,
                       const Invocation& invocation) {
  const NamedWorkload workload = system_workload(options);
  std::vector<SystemShape> shapes;
  for (const std::string& name : options.systems) {
    const System system = parse_system(name);
    if (system == System::kOmniMoe) {
      throw InvalidArgument("system", name, "is what check is for without --system");
    }
    const auto own = shapes_of(options, system, full, workload.spec);
    shapes.insert(shapes.end(), own.begin(), own.end());
  }
  const auto backend = make_backend(options.backend);
  const auto writer = open_rows(options.output, run_header(invocation, *backend));
  Tally tally;
  for (const SystemShape& shape : shapes) {
    for (const ScheduleOptions& schedule : baseline_schedules(options, shape.system)) {
      check_shape(*backend, shape, schedule, workload, options, sampled_tokens, writer.get(), tally);
    }
  }
  std::cout << fmt::format("{}: {} passed, {} failed, {} skipped\n", backend->name(), tally.passed,
                           tally.failed, tally.skipped);
  if (writer) {
    std::cout << "rows: " << writer->directory().string() << "/rows.jsonl, rows.csv\n";
  }
  std::cout << tally.failures;
  if (tally.failed == 0 && tally.passed > 0) {
    return ExitCode::kOk;
  }
  // A check that compared nothing has shown nothing.
  return tally.failed == 0 && tally.no_memory ? ExitCode::kOutOfMemory : ExitCode::kCheckFailed;
}

}  // namespace moescope
