#include "profiler/limits/ceilings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

std::string unit_of(std::string_view metric) {
  return metric.ends_with("flop_per_s") ? "flop_per_s" : "bytes_per_s";
}

double median_clock(const ArmResult& result) {
  std::vector<double> clocks;
  for (const ClockSample& sample : result.clocks) {
    if (sample.sm_clock_hz >= 0) {
      clocks.push_back(sample.sm_clock_hz);
    }
  }
  return clocks.empty() ? -1 : median(std::move(clocks));
}

Ceiling summarise(const CeilingProbe& probe, const ArmResult& result) {
  Ceiling ceiling;
  ceiling.metric = probe.metric;
  ceiling.method = probe.method;
  const StageSamples* times = result.find(Stage::kLayer);
  if (times == nullptr) {
    ceiling.reason = result.failure.value_or(
        fmt::format("all {} samples were taken at too low an SM clock", result.discarded));
    return ceiling;
  }
  ceiling.rate = probe.work / times->median_s();
  ceiling.spread = times->spread();
  ceiling.samples = times->count();
  ceiling.sm_clock_hz = median_clock(result);
  return ceiling;
}

/// A ceiling is what the best of its probes reaches; the others stay named with what they reached.
Ceiling best_of(std::vector<Ceiling> patterns) {
  std::ranges::stable_sort(patterns, std::greater<>(),
                           [](const Ceiling& pattern) { return pattern.rate.value_or(-1); });
  Ceiling best = std::move(patterns.front());
  if (patterns.size() > 1 && best.rate) {
    best.method += fmt::format("; best of {} patterns, the others:", patterns.size());
    for (std::size_t i = 1; i < patterns.size(); ++i) {
      const Ceiling& other = patterns[i];
      best.method +=
          fmt::format("{} {} ({})", i == 1 ? "" : ",",
                      other.rate ? format_engineering(*other.rate, "/s") : other.reason, other.method);
    }
  }
  return best;
}

}  // namespace

std::optional<double> DeviceCeilings::rate(std::string_view metric) const {
  const auto found = std::ranges::find(ceilings, metric, &Ceiling::metric);
  return found == ceilings.end() ? std::nullopt : found->rate;
}

std::optional<double> DeviceCeilings::hbm_bytes_per_s() const {
  std::optional<double> best;
  for (const auto metric : {ceiling::kHbmCopy, ceiling::kHbmRead, ceiling::kHbmWrite}) {
    if (const auto value = rate(metric)) {
      best = std::max(best.value_or(0), *value);
    }
  }
  return best;
}

DeviceCeilings measure_ceilings(const CeilingProbes& probes, std::string device,
                                const SamplingOptions& sampling) {
  std::vector<Arm> arms;
  for (const CeilingProbe& probe : probes.probes) {
    // Sampling knows stages of layers; a probe is one run from its first kernel to its last.
    arms.push_back(
        {probe.metric, [&probe, &probes] {
           const double time_s = probe.run_s();
           return ArmSample{{{Stage::kLayer, time_s}}, probes.clocks ? probes.clocks() : ClockSample{}};
         }});
  }
  const auto results = sample_alternating(arms, sampling);
  DeviceCeilings ceilings{std::move(device), {}};
  std::vector<bool> done(results.size(), false);
  for (std::size_t i = 0; i < results.size(); ++i) {
    std::vector<Ceiling> patterns;
    for (std::size_t j = i; j < results.size(); ++j) {
      if (!done[j] && probes.probes[j].metric == probes.probes[i].metric) {
        done[j] = true;
        patterns.push_back(summarise(probes.probes[j], results[j]));
      }
    }
    if (!patterns.empty()) {
      ceilings.ceilings.push_back(best_of(std::move(patterns)));
    }
  }
  return ceilings;
}

std::vector<ResultRow> ceiling_rows(const DeviceCeilings& ceilings, std::string_view backend) {
  std::vector<ResultRow> rows;
  for (const Ceiling& ceiling : ceilings.ceilings) {
    ResultRow row;
    row.system = row.schedule = row.dtype = row.workload = row.l2_state = "none";
    row.stage = kDeviceStage;
    row.backend = backend;
    row.metric = ceiling.metric;
    row.unit = unit_of(ceiling.metric);
    row.value = ceiling.rate;
    row.samples = ceiling.samples;
    row.reason = ceiling.rate ? ceiling.method : ceiling.reason;
    row.status = ceiling.rate ? Status::kOk : Status::kFailed;
    if (ceiling.rate) {
      row.spread = ceiling.spread;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

std::optional<DeviceCeilings> recorded_ceilings(const std::vector<RecordedRun>& runs) {
  constexpr std::array kNames = {ceiling::kHbmCopy,    ceiling::kHbmRead,     ceiling::kHbmWrite,
                                 ceiling::kL2Read,     ceiling::kL2Reduction, ceiling::kSharedRead,
                                 ceiling::kBf16Matrix, ceiling::kFp32};
  std::optional<DeviceCeilings> result;
  for (const RecordedRun& run : runs) {
    DeviceCeilings found{run.header.device, {}};
    for (const ResultRow& row : run.rows) {
      if (row.stage == kDeviceStage && std::ranges::find(kNames, row.metric) != kNames.end()) {
        const bool ok = row.status == Status::kOk;
        found.ceilings.push_back({row.metric, ok ? row.reason : "", row.value, row.spread.value_or(0),
                                  row.samples, -1, ok ? "" : row.reason});
      }
    }
    if (!found.ceilings.empty()) {
      result = std::move(found);
    }
  }
  return result;
}

Table ceilings_table(const DeviceCeilings& ceilings) {
  Table table({{"ceiling", Align::kLeft},
               {"rate"},
               {"spread"},
               {"samples"},
               {"SM clock"},
               {"method", Align::kLeft, Need::kBelow}});
  for (const Ceiling& ceiling : ceilings.ceilings) {
    if (!ceiling.rate) {
      table.add_row({ceiling.metric, "-", "-", "-", "-", ceiling.reason});
      continue;
    }
    const bool flop = unit_of(ceiling.metric) == "flop_per_s";
    table.add_row({ceiling.metric,
                   TableCell(format_engineering(*ceiling.rate, flop ? "flop/s" : "B/s"), *ceiling.rate),
                   percent_cell(ceiling.spread), count_cell(ceiling.samples),
                   ceiling.sm_clock_hz < 0
                       ? TableCell("-")
                       : TableCell(format_engineering(ceiling.sm_clock_hz, "Hz"), ceiling.sm_clock_hz),
                   ceiling.method});
  }
  return table;
}

}  // namespace moescope
