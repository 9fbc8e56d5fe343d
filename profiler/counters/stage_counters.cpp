#include "profiler/counters/stage_counters.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

constexpr std::array<std::string_view, 2> kHbmBytes = {"hbm_read_bytes", "hbm_write_bytes"};

void run_all(LayerExecution& execution) {
  for (const Stage stage : execution.stages()) {
    execution.enqueue(stage);
  }
  execution.synchronize();
}

/// Odd, so that the median is one of them: now and then something else writes 256 KiB.
constexpr int kHbmReplays = 3;

/// The metrics of HBM's bytes, or nothing where one of them is not among `selection`.
std::optional<MetricSelection> hbm_metrics(const MetricSelection& selection) {
  MetricSelection chosen{.chip = selection.chip, .metrics = {}, .unavailable = {}};
  for (const std::string_view name : kHbmBytes) {
    const auto found = std::ranges::find(selection.metrics, name, &Metric::name);
    if (found == selection.metrics.end()) {
      return std::nullopt;
    }
    chosen.metrics.push_back(*found);
  }
  return chosen;
}

/// Read and written; empty when a counter was lost.
std::optional<double> hbm_bytes(const MetricSelection& hbm, const CounterPlan& plan,
                                const RangeCounters& range) {
  double sum = 0;
  for (const MetricValue& value : evaluate(hbm, plan, range)) {
    if (!value.value) {
      return std::nullopt;
    }
    sum += *value.value;
  }
  return sum;
}

double median_of(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

/// `by_stage`: a range per stage; `whole`: one range.
std::optional<HbmSums> count_hbm(CounterSource& source, const MetricSelection& selection,
                                 const RangedWork& by_stage, const RangedWork& whole) {
  const auto hbm = hbm_metrics(selection);
  if (!hbm || source.name() == "recorded") {
    return std::nullopt;
  }
  const CounterPlan plan = source.plan(hbm->counters());
  const std::size_t idle = by_stage.ranges.size() - 1;
  RangedWork behind_idle = whole;
  behind_idle.ranges.clear();
  for (std::size_t i = 0; i < idle; ++i) {
    behind_idle.ranges.push_back("idle " + std::to_string(i + 1));
  }
  behind_idle.ranges.push_back(whole.ranges.front());
  behind_idle.run = [&](std::size_t range) {
    if (range == idle) {
      whole.run(0);
    }
  };
  std::vector<std::vector<double>> stages(by_stage.ranges.size());
  std::vector<double> layer;
  std::vector<double> behind;
  for (int replay = 0; replay < kHbmReplays; ++replay) {
    const auto ranges = source.measure(plan, by_stage);
    for (std::size_t i = 0; i < stages.size(); ++i) {
      stages[i].push_back(hbm_bytes(*hbm, plan, ranges[i]).value_or(-1));
    }
    layer.push_back(hbm_bytes(*hbm, plan, source.measure(plan, whole).back()).value_or(-1));
    behind.push_back(hbm_bytes(*hbm, plan, source.measure(plan, behind_idle).back()).value_or(-1));
  }
  HbmSums sums{.layer = median_of(layer),
               .behind_idle = median_of(behind),
               .idle_ranges = static_cast<int>(idle),
               .replays = kHbmReplays};
  for (const auto& stage : stages) {
    const double bytes = median_of(stage);
    if (bytes < 0) {
      return std::nullopt;
    }
    sums.stages += bytes;
  }
  return sums.layer > 0 && sums.behind_idle > 0 ? std::optional(sums) : std::nullopt;
}

}  // namespace

std::optional<double> StageMetrics::find(std::string_view name) const {
  const auto found = std::ranges::find(values, name, &MetricValue::name);
  return found == values.end() ? std::nullopt : found->value;
}

std::optional<double> StageMetrics::sum(std::initializer_list<std::string_view> names) const {
  double sum = 0;
  for (const std::string_view name : names) {
    const auto value = find(name);
    if (!value) {
      return std::nullopt;
    }
    sum += *value;
  }
  return sum;
}

const StageMetrics* CountedLayer::find(Stage stage) const {
  const auto found = std::ranges::find(stages, stage, &StageMetrics::stage);
  return found == stages.end() ? nullptr : &*found;
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
    counted.hbm = count_hbm(source, selection, by_stage, whole);
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
