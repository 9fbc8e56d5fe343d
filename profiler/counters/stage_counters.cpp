#include "profiler/counters/stage_counters.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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
  if (const char* x = std::getenv("MOESCOPE_X")) {  // EXPERIMENT
    const CounterPlan plan = source.plan(selection.counters());
    run_all(execution);
    auto show = [&](const char* what, const std::vector<RangeCounters>& ranges) {
      double r = 0;
      double w = 0;
      std::fprintf(stderr, "X %s:", what);
      for (const auto& range : ranges) {
        const double rr = range.values.at("dram__bytes_read.sum");
        const double ww = range.values.at("dram__bytes_write.sum");
        std::fprintf(stderr, " %s r%.0f w%.0f;", range.range.c_str(), rr / 1e3, ww / 1e3);
        if (range.range != "idle") {
          r += rr;
          w += ww;
        }
      }
      std::fprintf(stderr, " SUM r%.0f w%.0f kB\n", r / 1e3, w / 1e3);
    };
    for (int us : {0, 200, 1000, 5000}) {
      RangedWork a = by_stage;
      a.ranges.push_back("idle");
      a.run = [&, us](std::size_t range) {
        if (range < stages.size()) {
          execution.enqueue(stages[range]);
          execution.synchronize();
        }
        usleep(us);
      };
      RangedWork b = whole;
      b.run = [&, us](std::size_t) {
        for (std::size_t i = 0; i < stages.size(); ++i) {
          execution.enqueue(stages[i]);
          execution.synchronize();
          usleep(us);
        }
      };
      for (int repeat = 0; repeat < 3; ++repeat) {
        show(("stages " + std::to_string(us) + "us").c_str(), source.measure(plan, a));
        show(("layer  " + std::to_string(us) + "us").c_str(), source.measure(plan, b));
      }
    }
    (void)x;
  }
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
