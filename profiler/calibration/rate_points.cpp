#include "profiler/calibration/rate_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"

namespace moescope {
namespace {

bool takes_part(const ResultRow& row) {
  return row.status == Status::kOk && row.value && row.dtype == to_string(Dtype::kBF16) &&
         row.l2_state != "warm" && row.system == "omnimoe" && row.direction == "forward" &&
         row.on_one_device();
}

std::optional<Stage> stage_of(const ResultRow& row) {
  const auto found = std::ranges::find(kStages, row.stage, [](Stage stage) { return to_string(stage); });
  return found == kStages.end() ? std::nullopt : std::optional(*found);
}

/// Analytic bytes and FLOP of an expert stage.
void add_cost(AnalyticCost& cost, Stage stage, const ResultRow& row) {
  const auto count = static_cast<std::int64_t>(*row.value);
  const auto bytes = [&](MemoryLevel level, Access access) {
    cost.traffic.push_back({stage, level, access, count, "recorded"});
  };
  if (row.metric == "hbm_read_bytes") {
    bytes(MemoryLevel::kHbm, Access::kRead);
  } else if (row.metric == "hbm_write_bytes") {
    bytes(MemoryLevel::kHbm, Access::kWrite);
  } else if (row.metric == "l2_read_bytes") {
    bytes(MemoryLevel::kL2, Access::kRead);
  } else if (row.metric == "l2_write_bytes") {
    bytes(MemoryLevel::kL2, Access::kWrite);
  } else if (row.metric == "useful_flop") {
    cost.flop.push_back({stage, count, 0});
  } else if (row.metric == "executed_flop") {
    cost.flop.push_back({stage, 0, count});
  } else if (row.metric == "strip_units") {
    cost.strip_units = count;
  }
}

void add_row(RatePoint& point, const ResultRow& row) {
  if (row.metric == "effective_experts") {
    point.skew.effective_experts = *row.value;
    return;
  }
  const auto stage = stage_of(row);
  if (row.schedule == "none" || !stage) {
    return;
  }
  const bool of_experts = std::ranges::find(kExpertStages, *stage) != kExpertStages.end();
  const bool decided = of_experts || *stage == Stage::kSchedule;
  if (row.metric == "time_s" && decided) {
    point.schedules[row.schedule].time_s += *row.value;
  } else if (row.metric == "time_s" && *stage == Stage::kRouterSelect) {
    point.schedules[row.schedule].select_s = *row.value;
  } else if (row.metric == "time_s" && *stage == Stage::kLayer) {
    point.schedules[row.schedule].layer_s = *row.value;
  } else if (row.source == Source::kAnalytic && of_experts) {
    add_cost(point.schedules[row.schedule].cost, *stage, row);
  }
}

void add_device(RatePoints& points, const RunHeader& header) {
  const auto l2 = header.machine.find("l2_bytes");
  if (l2 == header.machine.end()) {
    return;
  }
  if (!points.device.empty() && points.device != header.device) {
    throw InvalidArgument("rows", fmt::format("{} and {}", points.device, header.device),
                          "must be of one device");
  }
  points.device = header.device;
  points.size.cache_bytes = l2->second;
  if (const auto sms = header.machine.find("num_sms"); sms != header.machine.end()) {
    points.size.num_sms = static_cast<std::int64_t>(sms->second);
  }
}

}  // namespace

RatePoints rate_points(std::span<const std::vector<RecordedRun>> files) {
  RatePoints points;
  for (const std::vector<RecordedRun>& runs : files) {
    std::map<std::string, RatePoint> of_file;
    for (const RecordedRun& run : runs) {
      add_device(points, run.header);
      for (const ResultRow& row : run.rows) {
        if (!takes_part(row)) {
          continue;
        }
        std::string label = fmt::format("L{}_d{}_N{}x{}_K{}_{}", row.num_tokens, row.hidden_size,
                                        row.grid_rows, row.grid_cols, row.top_k, row.workload);
        if (row.gates != to_string(GateMode::kSoftmax)) {
          label += fmt::format("_{}", row.gates);
        }
        RatePoint& point = of_file[label];
        point.shape.num_tokens = row.num_tokens;
        point.shape.hidden_size = row.hidden_size;
        point.shape.grid_rows = row.grid_rows;
        point.shape.grid_cols = row.grid_cols;
        point.shape.top_k = row.top_k;
        point.shape.dtype = Dtype::kBF16;
        add_row(point, row);
      }
    }
    for (auto& [label, point] : of_file) {
      point.schedules.merge(points.points[label].schedules);  // a schedule that is here stays as it is here
      points.points[label] = std::move(point);
    }
  }
  if (points.size.cache_bytes <= 0) {
    throw InvalidArgument("rows", points.device, "must be of a GPU, and say how large its L2 is");
  }
  return points;
}

RatePoints read_rate_points(std::span<const std::filesystem::path> files) {
  std::vector<std::vector<RecordedRun>> read;
  for (const std::filesystem::path& file : files) {
    read.push_back(read_rows(file));
  }
  return rate_points(read);
}

}  // namespace moescope
