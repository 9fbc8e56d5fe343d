#include "profiler/report/regression.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
#include "core/schedule/schedule.hpp"

namespace moescope {
namespace {

/// Modelled times are held against modelled ones: the backend's name, part of identity(), tells them apart.
bool is_time(const ResultRow& row) {
  return row.metric == "time_s" && (row.source == Source::kMeasured || row.source == Source::kModelled);
}

bool is_layer(const ResultRow& row) { return row.stage == to_string(Stage::kLayer); }

/// The point, as text, by the fields that all of the runs can say.
std::string point_of(const ResultRow& row, int version) {
  return point_key(row, {PointPart::kLayer, PointPart::kSchedule, PointPart::kState}, version);
}
/// What was measured.
std::string identity(const ResultRow& row, int version) { return point_of(row, version) + row.stage; }

/// Points with a time of the layer.
std::set<std::string> points_with_layer(std::span<const RecordedRun> runs, int version) {
  std::set<std::string> points;
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      if (is_time(row) && is_layer(row)) {
        points.insert(point_of(row, version));
      }
    }
  }
  return points;
}

/// Oldest schema version among `runs`.
int oldest_version(std::span<const RecordedRun> runs) {
  int version = kResultSchemaVersion;
  for (const RecordedRun& run : runs) {
    version = std::min(version, run.header.schema_version);
  }
  return version;
}

/// Variance of the median of a row's samples; 0 when it has no spread.
double median_variance(const ResultRow& row) {
  /// Expected range of n standard normal samples (Tippett 1925), n = 2..10.
  constexpr std::array kRange = {1.128, 1.693, 2.059, 2.326, 2.534, 2.704, 2.847, 2.970, 3.078};
  if (!row.spread || row.samples < 2) {
    return 0;
  }
  const auto index = static_cast<std::size_t>(std::min<std::int64_t>(row.samples, 10) - 2);
  const double deviation = *row.spread * *row.value / kRange.at(index);
  // The median of n normal samples has pi/2 times the variance of their mean.
  return 1.5707963267948966 * deviation * deviation / static_cast<double>(row.samples);
}

/// Of a row's samples; 0 when it has no spread.
double half_range(const ResultRow& row) { return 0.5 * row.spread.value_or(0) * *row.value; }

TimeComparison compare(const ResultRow& before, const ResultRow& after, double threshold) {
  constexpr double kStandardErrors = 3;
  TimeComparison result;
  result.after = after;
  result.before_s = *before.value;
  if (after.status != Status::kOk) {
    result.verdict = TimeVerdict::kLost;
    return result;
  }
  result.ratio = *after.value / *before.value;
  result.noise_s = std::max(kStandardErrors * std::sqrt(median_variance(before) + median_variance(after)),
                            half_range(before) + half_range(after));
  const double difference_s = *after.value - *before.value;
  if (result.ratio <= 1 + threshold && result.ratio >= 1 / (1 + threshold)) {
    result.verdict = TimeVerdict::kSame;
  } else if (std::abs(difference_s) <= result.noise_s) {
    result.verdict = TimeVerdict::kUnclear;
  } else {
    result.verdict = difference_s > 0 ? TimeVerdict::kSlower : TimeVerdict::kFaster;
  }
  return result;
}

/// The last row of each identity, in the order in which identities first came.
struct LastRows {
  std::map<std::string, const ResultRow*> rows;
  std::vector<std::string> order;
};
LastRows last_rows(std::span<const RecordedRun> runs, int version, const std::set<std::string>& layers) {
  LastRows last;
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      if (!is_time(row) || (!is_layer(row) && layers.contains(point_of(row, version)))) {
        continue;
      }
      auto [place, is_new] = last.rows.insert_or_assign(identity(row, version), &row);
      if (is_new) {
        last.order.push_back(place->first);
      }
    }
  }
  return last;
}

std::string devices(std::span<const RecordedRun> runs) {
  std::set<std::string> names;
  for (const RecordedRun& run : runs) {
    names.insert(run.header.device);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

}  // namespace

std::string_view to_string(TimeVerdict verdict) {
  switch (verdict) {
    case TimeVerdict::kSame:
      return "SAME";
    case TimeVerdict::kFaster:
      return "FAST";
    case TimeVerdict::kSlower:
      return "SLOW";
    case TimeVerdict::kUnclear:
      return "UNCLEAR";
    case TimeVerdict::kLost:
      return "LOST";
  }
  return "?";
}

std::int64_t RegressionReport::count(TimeVerdict verdict) const {
  return std::ranges::count(times, verdict, &TimeComparison::verdict);
}

bool RegressionReport::holds() const {
  return !times.empty() && count(TimeVerdict::kSlower) == 0 && count(TimeVerdict::kLost) == 0;
}

RegressionReport compare_times(std::span<const RecordedRun> before, std::span<const RecordedRun> after,
                               const TimeRules& rules) {
  const double threshold = rules.threshold;
  if (!std::isfinite(threshold) || threshold < 0) {
    throw InvalidArgument("threshold", fmt::format("{}", threshold), "must be a fraction >= 0");
  }
  if (!rules.any_device && devices(before) != devices(after)) {
    throw InvalidArgument(
        "baseline", devices(before),
        fmt::format("these times are of {}, which says nothing about it (moescope diff --any-device "
                    "compares them all the same)",
                    devices(after)));
  }
  const int version = std::min(oldest_version(before), oldest_version(after));
  std::set<std::string> layers;
  if (rules.layers_alone) {
    layers = points_with_layer(before, version);
    const auto new_layers = points_with_layer(after, version);
    std::erase_if(layers, [&](const std::string& point) { return !new_layers.contains(point); });
  }
  const LastRows old_rows = last_rows(before, version, layers);
  const LastRows new_rows = last_rows(after, version, layers);
  RegressionReport report;
  std::int64_t times_before = 0;
  for (const auto& [key, row] : old_rows.rows) {
    times_before += row->status == Status::kOk && *row->value > 0 ? 1 : 0;
  }
  for (const std::string& key : new_rows.order) {
    const ResultRow& row = *new_rows.rows.at(key);
    const auto found = old_rows.rows.find(key);
    const bool comparable =
        found != old_rows.rows.end() && found->second->status == Status::kOk && *found->second->value > 0;
    if (comparable) {
      report.times.push_back(compare(*found->second, row, threshold));
    } else if (row.status == Status::kOk) {
      ++report.only_after;
    }
  }
  report.only_before = times_before - std::ssize(report.times);
  return report;
}

}  // namespace moescope
