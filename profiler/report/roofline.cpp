#include "profiler/report/roofline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
#include "profiler/report/layer_names.hpp"

namespace moescope {
namespace {

bool is_stage(const ResultRow& row) {
  return std::ranges::any_of(kStages, [&](Stage stage) { return row.stage == to_string(stage); });
}

/// Rows of one schedule on one layer.
class Values {
 public:
  explicit Values(const RecordedSchedule& schedule) : rows_(schedule.rows) {}

  /// Last recorded value; empty when there is none.
  std::optional<double> find(std::string_view stage, std::string_view metric, Source source) const {
    std::optional<double> value;
    for (const ResultRow* row : rows_) {
      if (row->metric == metric && row->source == source && row->status == Status::kOk &&
          row->stage == stage) {
        value = row->value;
      }
    }
    return value;
  }

  /// Of measured metrics; empty when one of them is missing.
  std::optional<double> sum(std::string_view stage, std::initializer_list<std::string_view> metrics) const {
    double total = 0;
    for (const std::string_view metric : metrics) {
      const auto value = find(stage, metric, Source::kMeasured);
      if (!value) {
        return std::nullopt;
      }
      total += *value;
    }
    return total;
  }

 private:
  const std::vector<const ResultRow*>& rows_;
};

/// Analytic FLOP of a stage as it ran, fused or apart (useful_flop_of in layer_profile.hpp).
std::optional<double> useful_flop(const Values& values, const std::string& stage) {
  const std::string_view fused = to_string(Stage::kExperts);
  const std::array parts = {to_string(Stage::kExpertScores), to_string(Stage::kExpertCombine)};
  const auto of = [&](std::string_view one) { return values.find(one, "useful_flop", Source::kAnalytic); };
  const auto own = of(stage);
  if (own || (stage != fused && std::ranges::find(parts, stage) == parts.end())) {
    return own;
  }
  if (stage != fused) {
    const auto both = of(fused);
    return both ? std::optional(*both / 2) : std::nullopt;
  }
  const auto scores = of(parts[0]);
  const auto combine = of(parts[1]);
  return scores && combine ? std::optional(*scores + *combine) : std::nullopt;
}

std::optional<double> flop_of(const Values& values, const std::string& stage, RooflineFlop flop) {
  const auto count = flop == RooflineFlop::kUseful ? useful_flop(values, stage)
                                                   : values.sum(stage, {"tensor_flop", "cuda_core_flop"});
  return count && *count > 0 ? count : std::nullopt;
}

std::optional<double> ratio(std::optional<double> a, std::optional<double> b) {
  return a && b && *b > 0 ? std::optional(*a / *b) : std::nullopt;
}

std::optional<double> roof(const DeviceCeilings& ceilings, std::optional<double> bandwidth,
                           double intensity) {
  const auto peak = ceilings.rate(ceiling::kBf16Matrix);
  return peak && bandwidth ? std::optional(std::min(*peak, *bandwidth * intensity)) : std::nullopt;
}

/// Bytes that L2 serves, as limits.hpp counts them against its roof.
std::optional<double> l2_bytes(const Values& values, const std::string& stage) {
  auto reads = values.find(stage, "l2_slice_read_bytes", Source::kMeasured);
  reads = reads ? reads : values.find(stage, "l2_read_bytes", Source::kMeasured);
  const auto changes = values.sum(stage, {"l2_write_bytes", "l2_reduction_bytes", "l2_atomic_bytes"});
  return reads && changes ? std::optional(*reads + *changes) : std::nullopt;
}

/// Whether the row gives a point.
bool is_stage_time(const ResultRow& row) {
  return row.metric == "time_s" && row.source == Source::kMeasured && row.status == Status::kOk &&
         is_stage(row);
}

/// A stage that was recorded more than once keeps its last values.
void add_point(Roofline& roofline, RooflinePoint point) {
  const auto same = std::ranges::find_if(roofline.points, [&](const RooflinePoint& other) {
    return other.label == point.label && other.schedule == point.schedule && other.stage == point.stage;
  });
  if (same != roofline.points.end()) {
    *same = std::move(point);
  } else {
    roofline.points.push_back(std::move(point));
  }
}

}  // namespace

std::optional<double> RooflinePoint::performance() const { return ratio(flop, time_s); }
std::optional<double> RooflinePoint::hbm_intensity() const { return ratio(flop, hbm_bytes); }
std::optional<double> RooflinePoint::l2_intensity() const { return ratio(flop, l2_bytes); }

std::optional<double> Roofline::hbm_roof(double intensity) const {
  return roof(ceilings, ceilings.hbm_bytes_per_s(), intensity);
}
std::optional<double> Roofline::l2_roof(double intensity) const {
  return roof(ceilings, ceilings.rate(ceiling::kL2Read), intensity);
}

Roofline read_roofline(const std::vector<RecordedRun>& runs, RooflineFlop flop) {
  Roofline roofline;
  roofline.flop = flop;
  auto ceilings = recorded_ceilings(runs);
  if (!ceilings) {
    throw InvalidArgument("rows", "none of a device's ceilings",
                          "need those that `moescope ceilings` or `moescope profile` writes");
  }
  roofline.ceilings = std::move(*ceilings);
  const auto layers = recorded_layers(runs);
  const auto names = layer_names(layers);
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const RunHeader& header = *layers[l].header;
    for (const RecordedSchedule& schedule : layers[l].schedules) {
      const Values values(schedule);
      for (const ResultRow* row : schedule.rows) {
        if (!is_stage_time(*row)) {
          continue;
        }
        if (header.device != roofline.ceilings.device) {
          throw InvalidArgument("rows", header.device,
                                fmt::format("times must be of the device whose ceilings are there, {}",
                                            roofline.ceilings.device));
        }
        roofline.recorded.insert(fmt::format("revision {}, {}", header.git_revision.substr(0, 7),
                                             header.started_utc.substr(0, 10)));
        add_point(
            roofline,
            {names[l], schedule.name, row->stage, *row->value, flop_of(values, row->stage, flop),
             values.sum(row->stage, {"hbm_read_bytes", "hbm_write_bytes"}), l2_bytes(values, row->stage)});
      }
    }
  }
  if (roofline.points.empty()) {
    throw InvalidArgument("rows", "none with a stage's time", "need those that `moescope profile` writes");
  }
  return roofline;
}

std::vector<Roofline> read_rooflines(std::vector<RecordedRun> runs, RooflineFlop flop) {
  const auto has_times = [](const RecordedRun& run) { return std::ranges::any_of(run.rows, is_stage_time); };
  std::vector<std::string> devices;
  for (const RecordedRun& run : runs) {
    if (has_times(run) && std::ranges::find(devices, run.header.device) == devices.end()) {
      devices.push_back(run.header.device);
    }
  }
  if (devices.size() < 2) {
    return {read_roofline(runs, flop)};
  }
  std::vector<Roofline> rooflines;
  for (const std::string& device : devices) {
    const auto others = std::stable_partition(
        runs.begin(), runs.end(), [&](const RecordedRun& run) { return run.header.device == device; });
    std::vector<RecordedRun> own(std::make_move_iterator(runs.begin()), std::make_move_iterator(others));
    runs.erase(runs.begin(), others);
    if (!recorded_ceilings(own)) {
      throw InvalidArgument("rows", device,
                            "has times of stages but no ceilings: add those that `moescope ceilings` writes");
    }
    rooflines.push_back(read_roofline(own, flop));
  }
  return rooflines;
}

std::vector<Roofline> profiled_rooflines(std::span<const RecordedRun> runs, RooflineFlop flop) {
  const auto counts = [](const RecordedRun& run) {
    return std::ranges::any_of(run.rows,
                               [](const ResultRow& row) {
                                 return row.metric == "hbm_read_bytes" && row.source == Source::kMeasured &&
                                        row.status == Status::kOk && is_stage(row);
                               }) &&
           std::ranges::any_of(run.rows, is_stage_time);
  };
  std::vector<std::string> devices;
  for (const RecordedRun& run : runs) {
    if (counts(run) && std::ranges::find(devices, run.header.device) == devices.end()) {
      devices.push_back(run.header.device);
    }
  }
  std::vector<Roofline> rooflines;
  for (const std::string& device : devices) {
    // Runs without counted bytes give their ceilings alone.
    std::vector<RecordedRun> own;
    for (const RecordedRun& run : runs) {
      if (run.header.device != device) {
        continue;
      }
      if (counts(run)) {
        own.push_back(run);
        continue;
      }
      RecordedRun& ceilings = own.emplace_back(RecordedRun{run.header, {}, {}});
      std::ranges::copy_if(run.rows, std::back_inserter(ceilings.rows),
                           [](const ResultRow& row) { return row.stage == kDeviceStage; });
    }
    if (!recorded_ceilings(own)) {
      continue;
    }
    try {
      rooflines.push_back(read_roofline(own, flop));
    } catch (const InvalidArgument&) {
      continue;  // stages of what is no layer
    }
  }
  return rooflines;
}

}  // namespace moescope
