#include "profiler/limits/roofline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"

namespace moescope {
namespace {

bool is_stage(const ResultRow& row) {
  return std::ranges::any_of(kStages, [&](Stage stage) { return row.stage == to_string(stage); });
}

/// "snapshot:data/small_layer2.safetensors" is "small_layer2" in a figure.
std::string label_of(const ResultRow& row) {
  std::string workload = row.workload;
  if (workload.starts_with("snapshot:") || workload.starts_with("trace:")) {
    workload = std::filesystem::path(workload.substr(workload.find(':') + 1)).stem().string();
  }
  LayerShape shape;
  shape.num_tokens = row.num_tokens;
  shape.hidden_size = row.hidden_size;
  shape.grid_rows = row.grid_rows;
  shape.grid_cols = row.grid_cols;
  shape.top_k = row.top_k;
  return fmt::format("{}, {} {}, L2 {}", workload, shape.label(), row.dtype, row.l2_state);
}

/// Values of one metric by point; rows at rest (l2_state none) belong to every L2 state.
class Values {
 public:
  explicit Values(const std::vector<RecordedRun>& runs) : runs_(runs) {}

  /// Last recorded value beside `like`; empty when there is none.
  std::optional<double> find(const ResultRow& like, std::string_view metric, Source source) const {
    std::optional<double> value;
    for (const RecordedRun& run : runs_) {
      for (const ResultRow& row : run.rows) {
        if (row.metric == metric && row.source == source && row.status == Status::kOk &&
            row.stage == like.stage && row.schedule == like.schedule && row.workload == like.workload &&
            row.num_tokens == like.num_tokens && row.top_k == like.top_k && row.grid_rows == like.grid_rows &&
            row.grid_cols == like.grid_cols && row.hidden_size == like.hidden_size &&
            row.dtype == like.dtype && row.backend == like.backend &&
            (row.l2_state == like.l2_state || row.l2_state == "none")) {
          value = row.value;
        }
      }
    }
    return value;
  }

  /// Of measured metrics; empty when one of them is missing.
  std::optional<double> sum(const ResultRow& like, std::initializer_list<std::string_view> metrics) const {
    double total = 0;
    for (const std::string_view metric : metrics) {
      const auto value = find(like, metric, Source::kMeasured);
      if (!value) {
        return std::nullopt;
      }
      total += *value;
    }
    return total;
  }

 private:
  const std::vector<RecordedRun>& runs_;
};

/// Analytic FLOP of a stage as it ran, fused or apart (useful_flop_of in layer_profile.hpp).
std::optional<double> useful_flop(const Values& values, ResultRow row) {
  const std::string_view fused = to_string(Stage::kExperts);
  const std::array parts = {to_string(Stage::kExpertScores), to_string(Stage::kExpertCombine)};
  const auto of = [&](std::string_view stage) {
    row.stage = stage;
    return values.find(row, "useful_flop", Source::kAnalytic);
  };
  const std::string stage = row.stage;
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

std::optional<double> flop_of(const Values& values, const ResultRow& row, RooflineFlop flop) {
  const auto count = flop == RooflineFlop::kUseful ? useful_flop(values, row)
                                                   : values.sum(row, {"tensor_flop", "cuda_core_flop"});
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
  const Values values(runs);
  for (const RecordedRun& run : runs) {
    for (const ResultRow& row : run.rows) {
      if (row.metric != "time_s" || row.source != Source::kMeasured || row.status != Status::kOk ||
          !is_stage(row)) {
        continue;
      }
      if (run.header.device != roofline.ceilings.device) {
        throw InvalidArgument("rows", run.header.device,
                              fmt::format("times must be of the device whose ceilings are there, {}",
                                          roofline.ceilings.device));
      }
      roofline.recorded.insert(fmt::format("revision {}, {}", run.header.git_revision.substr(0, 7),
                                           run.header.started_utc.substr(0, 10)));
      auto l2_reads = values.find(row, "l2_slice_read_bytes", Source::kMeasured);  // as limits.hpp does
      l2_reads = l2_reads ? l2_reads : values.find(row, "l2_read_bytes", Source::kMeasured);
      const auto l2_changes = values.sum(row, {"l2_write_bytes", "l2_reduction_bytes", "l2_atomic_bytes"});
      RooflinePoint point{label_of(row),
                          row.schedule,
                          row.stage,
                          *row.value,
                          flop_of(values, row, flop),
                          values.sum(row, {"hbm_read_bytes", "hbm_write_bytes"}),
                          l2_reads && l2_changes ? std::optional(*l2_reads + *l2_changes) : std::nullopt};
      const auto same = std::ranges::find_if(roofline.points, [&](const RooflinePoint& other) {
        return other.label == point.label && other.schedule == point.schedule && other.stage == point.stage;
      });
      if (same != roofline.points.end()) {
        *same = std::move(point);
      } else {
        roofline.points.push_back(std::move(point));
      }
    }
  }
  if (roofline.points.empty()) {
    throw InvalidArgument("rows", "none with a stage's time", "need those that `moescope profile` writes");
  }
  return roofline;
}

}  // namespace moescope
