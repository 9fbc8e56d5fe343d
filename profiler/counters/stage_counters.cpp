#include "profiler/counters/stage_counters.hpp"

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

void run_all(LayerExecution& execution) {
  for (const Stage stage : execution.stages()) {
    execution.enqueue(stage);
  }
  execution.synchronize();
}

}  // namespace

std::optional<double> StageMetrics::find(std::string_view name) const {
  const auto found = std::ranges::find(values, name, &MetricValue::name);
  return found == values.end() ? std::nullopt : found->value;
}

const StageMetrics* CountedLayer::find(Stage stage) const {
  const auto found = std::ranges::find(stages, stage, &StageMetrics::stage);
  return found == stages.end() ? nullptr : &*found;
}

std::optional<double> CountedLayer::sum_over_layer(std::span<const std::string_view> metrics) const {
  double sum = 0;
  double layer = 0;
  for (const StageMetrics& stage : stages) {
    for (const std::string_view metric : metrics) {
      const auto value = stage.find(metric);
      if (!value) {
        return std::nullopt;
      }
      (stage.stage == Stage::kLayer ? layer : sum) += *value;
    }
  }
  return layer > 0 ? std::optional(sum / layer) : std::nullopt;
}

CountedLayer count_layer(LayerExecution& execution, CounterSource& source, const MetricSelection& selection,
                         L2State l2) {
  CountedLayer counted;
  counted.source = source.name();
  const auto stages = execution.stages();
  const auto before_pass = [&] {
    if (l2 == L2State::kCold) {
      execution.empty_cache();
    } else {
      run_all(execution);
    }
  };
  RangedWork by_stage;
  by_stage.before_pass = before_pass;
  for (const Stage stage : stages) {
    by_stage.ranges.emplace_back(to_string(stage));
  }
  by_stage.run = [&](std::size_t range) {
    execution.enqueue(stages[range]);
    execution.synchronize();
  };
  RangedWork whole;
  whole.before_pass = before_pass;
  whole.ranges = {std::string(to_string(Stage::kLayer))};
  // With the same waits as above: an idle L2 writes dirty lines back early, and what is written to them later
  // goes to memory once more.
  whole.run = [&](std::size_t) {
    for (std::size_t i = 0; i < stages.size(); ++i) {
      by_stage.run(i);
    }
  };
  try {
    const CounterPlan plan = source.plan(selection.counters());
    counted.passes = plan.passes;
    run_all(execution);  // every stage's input is there, and nothing is loaded for the first time in a pass
    auto ranges = source.measure(plan, by_stage);
    std::ranges::move(source.measure(plan, whole), std::back_inserter(ranges));
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const Stage stage = i < stages.size() ? stages[i] : Stage::kLayer;
      if (ranges[i].range != to_string(stage)) {
        throw InternalError("counters of range \"" + ranges[i].range + "\" where those of \"" +
                            std::string(to_string(stage)) + "\" belong");
      }
      counted.stages.push_back({stage, evaluate(selection, plan, ranges[i])});
    }
    counted.plan = plan;
    counted.ranges = std::move(ranges);
  } catch (const InternalError&) {
    throw;
  } catch (const Error& error) {
    counted.stages.clear();
    counted.reason = error.what();
  }
  return counted;
}

CountedLayer uncounted(std::string reason) {
  CountedLayer counted;
  counted.source = "none";
  counted.reason = std::move(reason);
  return counted;
}

}  // namespace moescope
