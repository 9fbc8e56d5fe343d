// A routing of four tokens, its schedules and what they cost: the installed library at work.
#include <cstdio>

#include "core/cost/traffic.hpp"
#include "core/layer/routing.hpp"
#include "core/schedule/schedule.hpp"

int main() {
  using namespace moescope;
  LayerShape shape;
  shape.num_tokens = 4;
  shape.hidden_size = 16;
  shape.grid_rows = shape.grid_cols = 4;
  shape.top_k = 2;
  shape.shared_size = 0;
  Routing routing{4, 4, 4, {0, 2, 4, 6, 8}, {0, 1, 1, 5, 1, 9, 0, 15}, std::vector<float>(8, 0.5F)};
  routing.validate();
  for (const ScheduleKind kind : {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric}) {
    const Schedule schedule = build_schedule(routing, {.kind = kind});
    const AnalyticCost cost = analytic_cost(shape, routing, schedule, true);
    std::printf("%s %lld bytes requested, %lld flop\n", std::string(to_string(kind)).c_str(),
                static_cast<long long>(cost.bytes(Stage::kLayer, MemoryLevel::kL2)),
                static_cast<long long>(cost.useful_flop(Stage::kLayer)));
  }
  return 0;
}
