#include "profiler/study/layer_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>

#include "profiler/study/rank_rows.hpp"

namespace moescope {
namespace {

ResultRow base_row(const Point& point, Stage stage, Source source, std::string metric, std::string unit) {
  ResultRow row;
  static_cast<Point&>(row) = point;
  row.stage = to_string(stage);
  row.source = source;
  row.metric = std::move(metric);
  row.unit = std::move(unit);
  return row;
}

void append(std::vector<ResultRow>& rows, std::vector<ResultRow> more) {
  std::ranges::move(more, std::back_inserter(rows));
}

/// Median of a reading over the samples; unavailable when the backend reads none (it says so by a negative
/// value).
ResultRow clock_row(const Point& context, const ArmResult& times, std::string metric, std::string unit,
                    const std::function<double(const ClockSample&)>& reading) {
  std::vector<double> values;
  for (const ClockSample& clocks : times.clocks) {
    if (reading(clocks) >= 0) {
      values.push_back(reading(clocks));
    }
  }
  if (values.empty()) {
    return absent_row(context, Stage::kLayer, Source::kMeasured, std::move(metric), std::move(unit),
                      Status::kUnavailable, fmt::format("the {} backend had no reading", context.backend));
  }
  ResultRow row = value_row(context, Stage::kLayer, Source::kMeasured, std::move(metric), median(values),
                            std::move(unit));
  row.samples = static_cast<std::int64_t>(values.size());
  if (*row.value > 0) {
    row.spread = (std::ranges::max(values) - std::ranges::min(values)) / *row.value;
  }
  return row;
}

void append_ratio(std::vector<ResultRow>& rows, const Point& context, Stage stage, const char* metric,
                  const std::optional<RatioSummary>& ratio) {
  if (!ratio) {
    return;
  }
  ResultRow row = value_row(context, stage, Source::kMeasured, metric, ratio->median, "ratio");
  row.samples = ratio->samples;
  row.spread = (ratio->max - ratio->min) / ratio->median;
  rows.push_back(std::move(row));
}

std::vector<ResultRow> schedule_rows(const Point& context, const LayerStudy& study,
                                     const ScheduleStudy& point) {
  std::vector<ResultRow> rows;
  if (point.status != Status::kOk) {
    rows.push_back(
        absent_row(context, Stage::kLayer, Source::kMeasured, "time_s", "s", point.status, point.reason));
    return rows;
  }
  append(rows, time_rows(context, point.times));
  if (point.is_chosen()) {
    const auto layer = std::ranges::find(rows, to_string(Stage::kLayer), &ResultRow::stage);
    layer->reason = fmt::format(
        "auto {} {}", point.tuned_on.empty() ? "ran" : "on " + point.tuned_on + " ran", to_string(point.ran));
    append_ratio(rows, context, Stage::kLayer, "time_over_fastest", time_over_fastest(study, point));
  } else if (!point.explanation.empty()) {
    const auto layer = std::ranges::find(rows, to_string(Stage::kLayer), &ResultRow::stage);
    layer->reason = fmt::format("auto: {}", point.explanation.substr(0, point.explanation.find('\n')));
  }
  append_ratio(rows, context, Stage::kLayer, "speed_up_over_token_centric", point.layer_speed_up);
  append_ratio(rows, context, Stage::kExperts, "speed_up_over_token_centric", point.expert_speed_up);
  if (point.ranks) {
    append(rows, rank_rows(context, *point.ranks));
  } else {
    append(rows, cost_rows(context, point.cost));
  }
  for (const StageMemory& memory : point.memory) {
    rows.push_back(value_row(context, memory.stage, Source::kAnalytic, "workspace_bytes",
                             static_cast<double>(memory.workspace_bytes), "bytes"));
  }
  rows.push_back(value_row(context, Stage::kLayer, Source::kAnalytic, "weight_bytes",
                           static_cast<double>(point.weight_bytes), "bytes"));
  if (!point.ranks) {
    rows.push_back(value_row(context, Stage::kLayer, Source::kAnalytic, "peak_bytes",
                             static_cast<double>(point.peak_bytes), "bytes"));
  }
  if (point.error) {
    append(rows, error_rows(context, *point.error));
    if (!point.error_of.empty()) {
      std::ranges::for_each(rows.end() - 2, rows.end(), [&](ResultRow& row) { row.reason = point.error_of; });
    }
  } else {
    rows.push_back(absent_row(context, Stage::kLayer, Source::kMeasured, "relative_error", "fraction",
                              Status::kFailed, point.error_reason));
  }
  if (point.ffn) {
    append(rows, ffn_study_rows(context, *point.ffn));
  }
  rows.push_back(value_row(context, Stage::kLayer, Source::kAnalytic, "deterministic",
                           point.deterministic ? 1 : 0, "flag"));
  return rows;
}

}  // namespace

ResultRow value_row(const Point& context, Stage stage, Source source, std::string metric, double value,
                    std::string unit) {
  if (!std::isfinite(value) || value < 0) {  // e.g. a difference of counters that several replays took
    return absent_row(context, stage, source, std::move(metric), std::move(unit), Status::kFailed,
                      fmt::format("the value is {}", value));
  }
  ResultRow row = base_row(context, stage, source, std::move(metric), std::move(unit));
  row.value = value;
  return row;
}

ResultRow absent_row(const Point& context, Stage stage, Source source, std::string metric, std::string unit,
                     Status status, std::string reason) {
  ResultRow row = base_row(context, stage, source, std::move(metric), std::move(unit));
  row.samples = 0;
  row.status = status;
  row.reason = std::move(reason);
  return row;
}

std::vector<ResultRow> skew_rows(const Point& context, const SkewMetrics& skew) {
  std::vector<ResultRow> rows;
  const auto add = [&](const char* metric, double value, const char* unit) {
    rows.push_back(value_row(context, Stage::kRouterSelect, Source::kAnalytic, metric, value, unit));
  };
  add("num_pairs", static_cast<double>(skew.num_pairs), "pairs");
  add("active_experts", static_cast<double>(skew.active_experts), "experts");
  add("usage", skew.usage, "fraction");
  add("unevenness_nats", skew.unevenness, "nats");
  add("gini", skew.gini, "fraction");
  add("max_over_mean", skew.max_over_mean, "ratio");
  add("effective_experts", skew.effective_experts, "experts");
  add("reuse", skew.reuse, "pairs_per_expert");
  if (context.system != to_string(System::kOmniMoe)) {
    return rows;  // its routing has a row per head, or a grid of one row: rows and strips mean nothing
  }
  add("rows_per_token", skew.rows_per_token, "rows");
  add("cols_per_token", skew.cols_per_token, "cols");
  add("strips_per_token", skew.strips_per_token, "strips");
  add("max_strips_per_token", static_cast<double>(skew.max_strips_per_token), "strips");
  return rows;
}

std::vector<ResultRow> ffn_study_rows(const Point& context, const FfnStudy& ffn) {
  std::vector<ResultRow> rows;
  const auto add = [&](const char* metric, double value, const char* unit) {
    rows.push_back(value_row(context, Stage::kExperts, Source::kAnalytic, metric, value, unit));
  };
  add("executed_rows", static_cast<double>(ffn.rows.executed), "rows");
  add("padding_waste", ffn.rows.padding_waste(), "ratio");
  if (!ffn.has_rule) {
    return rows;
  }
  add("dropless_executed_rows", static_cast<double>(ffn.dropless.executed), "rows");
  add("dropped_pairs", static_cast<double>(ffn.dropped_pairs), "pairs");
  add("dropped_share", ffn.dropped_share(), "fraction");
  add("added_pairs", static_cast<double>(ffn.added_pairs), "pairs");
  add("tokens_without_experts", static_cast<double>(ffn.tokens_without), "tokens");
  if (ffn.capacity > 0) {
    add("expert_capacity", static_cast<double>(ffn.capacity), "rows");
  }
  if (ffn.dropless_error) {
    rows.push_back(value_row(context, Stage::kLayer, Source::kMeasured, "dropless_relative_error",
                             ffn.dropless_error->relative_error, "fraction"));
  }
  return rows;
}

std::vector<ResultRow> cost_rows(const Point& context, const AnalyticCost& cost) {
  Point at_rest = context;
  at_rest.l2_state = "none";
  std::vector<ResultRow> rows;
  for (const Stage stage : kStages) {
    const bool listed = stage == Stage::kLayer ||
                        std::ranges::count(cost.traffic, stage, &TrafficTerm::stage) > 0 ||
                        std::ranges::count(cost.flop, stage, &FlopCount::stage) > 0;
    if (!listed) {
      continue;
    }
    const auto add = [&](std::string metric, std::int64_t value, const char* unit) {
      rows.push_back(
          value_row(at_rest, stage, Source::kAnalytic, std::move(metric), static_cast<double>(value), unit));
    };
    for (const MemoryLevel level : {MemoryLevel::kHbm, MemoryLevel::kL2}) {
      for (const Access access : {Access::kRead, Access::kWrite}) {
        add(fmt::format("{}_{}_bytes", to_string(level), to_string(access)), cost.bytes(stage, level, access),
            "bytes");
      }
    }
    add("useful_flop", cost.useful_flop(stage), "flop");
    add("executed_flop", cost.executed_flop(stage), "flop");
    if (stage == Stage::kExperts && cost.strip_units > 0) {
      add("strip_units", cost.strip_units, "units");
    }
  }
  return rows;
}

std::vector<ResultRow> time_rows(const Point& context, const ArmResult& times) {
  std::vector<ResultRow> rows;
  if (times.find(Stage::kLayer) == nullptr) {
    rows.push_back(
        absent_row(context, Stage::kLayer, Source::kMeasured, "time_s", "s", Status::kUnavailable,
                   fmt::format("all {} samples were taken at too low an SM clock", times.discarded)));
  }
  for (const StageSamples& stage : times.stages) {
    ResultRow row = value_row(context, stage.stage, Source::kMeasured, "time_s", stage.median_s(), "s");
    row.samples = stage.count();
    row.spread = stage.spread();
    rows.push_back(std::move(row));
  }
  rows.push_back(value_row(context, Stage::kLayer, Source::kMeasured, "discarded_samples",
                           static_cast<double>(times.discarded), "samples"));
  rows.push_back(
      clock_row(context, times, "sm_clock_hz", "hz", [](const ClockSample& c) { return c.sm_clock_hz; }));
  rows.push_back(
      clock_row(context, times, "temperature_c", "c", [](const ClockSample& c) { return c.temperature_c; }));
  return rows;
}

std::vector<ResultRow> error_rows(const Point& context, const ErrorReport& error) {
  return {value_row(context, Stage::kLayer, Source::kMeasured, "relative_error", error.relative_error,
                    "fraction"),
          value_row(context, Stage::kLayer, Source::kMeasured, "max_absolute_error", error.max_absolute_error,
                    "none")};
}

namespace {

Point study_point(const LayerStudy& study) {
  Point point = study.baseline ? layer_point(*study.baseline, study.backend, study.workload, study.seed)
                               : layer_point(study.shape, study.backend, study.workload, study.seed);
  if (study.save) {
    point.direction = to_string(Direction::kBackward);
    point.save = to_string(*study.save);
    point.gradients = study.gradients == GradientForm::kStored ? "none" : to_string(study.gradients);
    point.optimizer = to_string(study.optimizer);
  }
  return point;
}

}  // namespace

Point schedule_point(const LayerStudy& study, const ScheduleStudy& schedule) {
  Point point = study_point(study);
  point.set_schedule(schedule.options);
  point.schedule = study.baseline && !study.baseline->has_routing() ? "none" : schedule.name();
  point.l2_state = to_string(study.sampling.l2);
  return point;
}

std::vector<ResultRow> study_rows(const LayerStudy& study) {
  const Point context = study_point(study);
  std::vector<ResultRow> rows;
  const auto add = [&](Stage stage, const char* metric, std::int64_t value, const char* unit) {
    rows.push_back(value_row(context, stage, Source::kAnalytic, metric, static_cast<double>(value), unit));
  };
  if (study.skew.num_pairs > 0) {  // dense_mlp routes nothing, and a layer that failed has no routing
    append(rows, skew_rows(context, study.skew));
    if (study.floor_bytes > 0) {
      add(Stage::kExperts, "floor_bytes", study.floor_bytes, "bytes");
    }
  }
  for (const ScheduleStudy& point : study.schedules) {
    append(rows, schedule_rows(schedule_point(study, point), study, point));
  }
  return rows;
}

std::vector<std::string_view> with_ffn_metrics(std::vector<std::string_view> metrics) {
  metrics.insert(metrics.end(),
                 {"executed_rows", "padding_waste", "dropless_executed_rows", "dropped_pairs",
                  "dropped_share", "added_pairs", "tokens_without_experts", "expert_capacity"});
  return metrics;
}

std::span<const std::string_view> study_metrics() {
  static const auto kMetrics = with_ffn_metrics({"num_pairs",
                                                 "active_experts",
                                                 "usage",
                                                 "unevenness_nats",
                                                 "gini",
                                                 "max_over_mean",
                                                 "effective_experts",
                                                 "reuse",
                                                 "rows_per_token",
                                                 "cols_per_token",
                                                 "strips_per_token",
                                                 "max_strips_per_token",
                                                 "floor_bytes",
                                                 "time_s",
                                                 "discarded_samples",
                                                 "sm_clock_hz",
                                                 "temperature_c",
                                                 "speed_up_over_token_centric",
                                                 "time_over_fastest",
                                                 "hbm_read_bytes",
                                                 "hbm_write_bytes",
                                                 "l2_read_bytes",
                                                 "l2_write_bytes",
                                                 "useful_flop",
                                                 "executed_flop",
                                                 "strip_units",
                                                 "workspace_bytes",
                                                 "weight_bytes",
                                                 "peak_bytes",
                                                 "relative_error",
                                                 "max_absolute_error",
                                                 "dropless_relative_error",
                                                 "deterministic",
                                                 "load_max_over_mean",
                                                 "rank_time_max_over_mean",
                                                 "ranks_per_token",
                                                 "remote_ranks_per_token",
                                                 "exchange_bytes",
                                                 "moved_bytes",
                                                 "exposed_s",
                                                 "busiest_rank_bytes",
                                                 "home_tokens",
                                                 "rank_pairs",
                                                 "rank_experts",
                                                 "link_bytes"});
  return kMetrics;
}

}  // namespace moescope
