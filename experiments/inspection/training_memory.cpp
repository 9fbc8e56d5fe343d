#include "experiments/inspection/training_memory.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/cost/memory_plan.hpp"
#include "core/schedule/schedule.hpp"
#include "profiler/study/layer_rows.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

struct NamedLayout {
  const char* name;
  TrainingLayout layout;
};

/// The mirror's lists of pairs; and of a staircase the tiles that kernels work on.
std::vector<NamedLayout> layouts_of(ScheduleKind kind, Dtype dtype) {
  std::vector<NamedLayout> layouts = {{"mirror", kMirrorLayout}};
  if (kind == ScheduleKind::kStaircase) {
    layouts.push_back({"strips", {.strips = true, .operands = dtype}});
  }
  return layouts;
}

std::int64_t worst_working(const MemoryPlan& plan) {
  std::int64_t most = 0;
  for (const Stage stage : plan.stages) {
    most = std::max(most, plan.working_bytes(stage));
  }
  return most;
}

}  // namespace

TrainingMemory training_memory(const LayerInputs& inputs, const Routing& routing, const Point& point,
                               std::span<const SaveMode> saves) {
  TrainingMemory memory{Table({{"schedule", Align::kLeft},
                               {"layout", Align::kLeft},
                               {"saved", Align::kLeft},
                               {"kept by the forward"},
                               {"working"},
                               {"above inputs and gradients"},
                               {"gradients"}}),
                        {}};
  for (const char* name :
       {"token_centric", "expert_centric", "staircase", "staircase:rows", "dense_masked"}) {
    const ScheduleOptions options = parse_schedule(name);
    const Schedule schedule = build_schedule(routing, options);
    for (const NamedLayout& layout : layouts_of(options.kind, inputs.shape.dtype)) {
      for (const SaveMode save : saves) {
        TrainingOptions training;
        training.save = save;
        const MemoryPlan plan =
            training_memory_plan(inputs.shape, routing, schedule, inputs.fixed_routing.has_value(),
                                 !inputs.router.row_bias.empty(), training, layout.layout);
        const auto saved = static_cast<double>(plan.bytes(MemoryPart::kSaved));
        const auto working = static_cast<double>(worst_working(plan));
        const auto gradients = static_cast<double>(plan.bytes(MemoryPart::kGradient));
        memory.table.add_row({name, layout.name, std::string(to_string(save)), format_bytes(saved),
                              format_bytes(working), format_bytes(static_cast<double>(plan.peak_bytes())),
                              format_bytes(gradients)});
        if (layout.layout.strips) {
          continue;
        }
        Point of = point;
        of.direction = to_string(Direction::kBackward);
        of.set_schedule(options);
        for (const auto& [metric, value] :
             {std::pair("saved_bytes", saved), std::pair("working_bytes", working),
              std::pair("gradient_bytes", gradients)}) {
          memory.rows.push_back(value_row(of, Stage::kLayer, Source::kAnalytic,
                                          fmt::format("{}_{}", to_string(save), metric), value, "bytes"));
        }
      }
    }
    memory.table.add_rule();
  }
  return memory;
}

}  // namespace moescope
