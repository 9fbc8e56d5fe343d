#include "profiler/report/headroom.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/base/line_text.hpp"
#include "core/layer/dtype.hpp"
#include "core/schedule/schedule_info.hpp"
#include "core/systems/system.hpp"
#include "profiler/text/format.hpp"

namespace moescope {
namespace {

/// A floor below this is a launch or two, and nothing is within a small factor of it.
constexpr double kFloorThatCounts = 20e-6;
constexpr double kWithinFloor = 3;
constexpr double kBesideDense = 1.1;

const ScheduleInfo* info_of(std::string_view name) {
  const auto infos = schedule_infos();
  const auto found = std::ranges::find(infos, name, &ScheduleInfo::name);
  return found == infos.end() ? nullptr : &*found;
}

struct Rates {
  double hbm = 0;
  double matrix = 0;  ///< FLOP/s of products in the layer's storage type
  double fp32 = 0;

  double of(const ScheduleInfo& info) const {
    return info.kind == ScheduleKind::kTokenCentric || info.library ? fp32 : matrix;
  }
};

Rates rates_of(const DeviceCeilings& ceilings, std::string_view dtype) {
  const auto needed = [&](std::optional<double> rate, std::string_view metric) {
    if (!rate || !(*rate > 0)) {
      throw InvalidArgument(
          "rows", ceilings.device,
          fmt::format("has no {} among its rows: add those of `moescope ceilings`", metric));
    }
    return *rate;
  };
  Rates rates;
  rates.hbm = needed(ceilings.hbm_bytes_per_s(), ceiling::kHbmRead);
  rates.fp32 = needed(ceilings.rate(ceiling::kFp32), ceiling::kFp32);
  rates.matrix = dtype == to_string(Dtype::kBF16)
                     ? needed(ceilings.rate(ceiling::kBf16Matrix), ceiling::kBf16Matrix)
                     : rates.fp32;
  return rates;
}

struct Floor {
  double seconds = 0;
  std::string by;
};

Floor larger(std::string_view stage, double bytes_s, double flop_s) {
  return bytes_s >= flop_s ? Floor{bytes_s, fmt::format("{} hbm", stage)}
                           : Floor{flop_s, fmt::format("{} flop", stage)};
}

std::optional<double> sum_of(const RecordedSchedule& schedule, std::span<const Stage> stages,
                             std::string_view metric) {
  std::optional<double> sum;
  for (const Stage stage : stages) {
    if (const auto value = schedule.value(stage, metric)) {
      sum = sum.value_or(0) + *value;
    }
  }
  return sum;
}

/// Least time for the FLOP of `stages` over the schedules; empty where none has them.
std::optional<double> least_flop_s(const RecordedLayer& layer, std::span<const Stage> stages,
                                   const Rates& rates, bool by_schedule) {
  std::optional<double> least;
  for (const RecordedSchedule& schedule : layer.schedules) {
    const ScheduleInfo* const info = info_of(schedule.name);
    const auto flop = sum_of(schedule, stages, "executed_flop");
    if (info != nullptr && !info->chosen && flop) {
      const double seconds = *flop / (by_schedule ? rates.of(*info) : rates.matrix);
      least = least ? std::min(*least, seconds) : seconds;
    }
  }
  return least;
}

std::optional<Floor> experts_floor(const RecordedLayer& layer, const Rates& rates) {
  const auto bytes = layer.common.value(Stage::kExperts, "floor_bytes");
  const auto flop_s = least_flop_s(layer, kExpertStages, rates, true);
  if (!bytes || !flop_s) {
    return std::nullopt;
  }
  return larger("experts", *bytes / rates.hbm, *flop_s);
}

/// Empty where no schedule has the stage.
std::optional<Floor> stage_floor(const RecordedLayer& layer, Stage stage, const Rates& rates) {
  std::optional<double> bytes;
  for (const RecordedSchedule& schedule : layer.schedules) {
    const auto read = schedule.value(stage, "hbm_read_bytes");
    const auto written = schedule.value(stage, "hbm_write_bytes");
    if (read && written) {
      bytes = std::min(bytes.value_or(*read + *written), *read + *written);
    }
  }
  if (!bytes) {
    return std::nullopt;
  }
  return larger(to_string(stage), *bytes / rates.hbm,
                least_flop_s(layer, std::array{stage}, rates, false).value_or(0));
}

std::optional<Floor> floor_of(const RecordedLayer& layer, const Rates& rates, HeadroomStage what) {
  std::optional<Floor> sum = experts_floor(layer, rates);
  if (!sum || what == HeadroomStage::kExperts) {
    return sum;
  }
  double largest = sum->seconds;
  for (const Stage stage : {Stage::kRouterProject, Stage::kRouterSelect, Stage::kSharedMlp}) {
    if (const auto floor = stage_floor(layer, stage, rates)) {
      sum->seconds += floor->seconds;
      if (floor->seconds > largest) {
        largest = floor->seconds;
        sum->by = floor->by;
      }
    }
  }
  return sum;
}

void take_faster(std::optional<ScheduleTime>& best, const ScheduleTime& one) {
  if (!best || one.time_s < best->time_s) {
    best = one;
  }
}

/// "auto ran NAME" of the row's reason, or "auto".
std::string what_ran(const RecordedSchedule& schedule) {
  constexpr std::string_view kRan = "auto ran ";
  const ResultRow* const row = schedule.find(Stage::kLayer, "time_s");
  return row != nullptr && row->reason.starts_with(kRan) ? row->reason.substr(kRan.size()) : schedule.name;
}

std::optional<double> time_of(const RecordedSchedule& schedule, HeadroomStage what) {
  const auto time =
      what == HeadroomStage::kLayer ? schedule.value(Stage::kLayer, "time_s") : schedule.experts_time_s();
  return time && *time > 0 ? time : std::nullopt;
}

std::optional<double> dense_flop_of(const RecordedLayer& layer) {
  for (const RecordedSchedule& schedule : layer.schedules) {
    const ScheduleInfo* const info = info_of(schedule.name);
    if (info != nullptr && info->kind == ScheduleKind::kDenseMasked) {
      return sum_of(schedule, kExpertStages, "executed_flop");
    }
  }
  return std::nullopt;
}

void note_error(const RecordedSchedule& schedule, LayerHeadroom& result) {
  const auto error = schedule.value(Stage::kLayer, "relative_error");
  if (error && *error >= result.worst_error.value_or(0)) {
    result.worst_error = error;
    result.worst_error_of = schedule.name;
  }
}

std::optional<LayerHeadroom> headroom_of(const RecordedLayer& layer, const DeviceCeilings& ceilings,
                                         HeadroomStage what) {
  const auto floor = floor_of(layer, rates_of(ceilings, layer.what.dtype), what);
  if (!floor || !(floor->seconds > 0)) {
    return std::nullopt;
  }
  LayerHeadroom result;
  result.layer = &layer;
  result.floor_s = floor->seconds;
  result.floor_by = floor->by;
  std::optional<ScheduleTime> fastest;
  const auto dense_flop = dense_flop_of(layer);
  for (const RecordedSchedule& schedule : layer.schedules) {
    const ScheduleInfo* const info = info_of(schedule.name);
    const auto time = time_of(schedule, what);
    if (info == nullptr || !time) {
      continue;
    }
    note_error(schedule, result);
    if (info->chosen) {
      if (info->kind) {  // auto; "tuned" chose on another workload
        result.chosen = ScheduleTime{what_ran(schedule), *time};
      }
      continue;
    }
    const ScheduleTime timed{schedule.name, *time};
    take_faster(fastest, timed);
    if (schedule.value(Stage::kLayer, "deterministic").value_or(0) > 0) {
      take_faster(result.repeatable, timed);
    }
    if (info->kind == ScheduleKind::kDenseMasked) {
      result.dense = timed;
    }
    const auto flop = sum_of(schedule, kExpertStages, "executed_flop");
    if (info->strips && flop && dense_flop && *flop <= *dense_flop) {
      take_faster(result.strips, timed);
    }
  }
  if (!fastest) {
    return std::nullopt;
  }
  result.fastest = *fastest;
  return result;
}

/// "L1024 d256 N64x64 K32, bf16, probability, zipf:1"
std::string label_of(const RecordedLayer& layer) {
  return fmt::format("{}{}, {}", layer.shape_text(),
                     layer.what.gates == "softmax" ? "" : ", " + layer.what.gates,
                     one_line(layer.what.workload));
}

TableCell ratio_or_dash(std::optional<double> ratio) { return ratio ? ratio_cell(*ratio) : TableCell("-"); }

std::string auto_sentence(std::span<const LayerHeadroom> layers) {
  double sum = 0;
  std::int64_t count = 0;
  const LayerHeadroom* worst = nullptr;
  for (const LayerHeadroom& each : layers) {
    if (const auto loss = each.auto_loss()) {
      sum += *loss;
      ++count;
      worst = worst == nullptr || *loss > *worst->auto_loss() ? &each : worst;
    }
  }
  if (worst == nullptr) {
    return "auto: not recorded beside a repeatable schedule.\n";
  }
  return fmt::format(
      "auto over the fastest repeatable schedule, {} layers: {:.3f}x in the mean, {:.2f}x at worst\n"
      "({}: it ran {}, {} was faster).\n",
      count, sum / static_cast<double>(count), *worst->auto_loss(), label_of(*worst->layer),
      worst->chosen->name, worst->repeatable->name);
}

std::string floor_sentence(std::span<const LayerHeadroom> layers) {
  std::int64_t count = 0;
  std::int64_t within = 0;
  for (const LayerHeadroom& each : layers) {
    if (each.floor_s > kFloorThatCounts) {
      ++count;
      within += each.over_floor() <= kWithinFloor ? 1 : 0;
    }
  }
  if (count == 0) {
    return fmt::format("No floor is above {}.\n", format_seconds(kFloorThatCounts));
  }
  return fmt::format(
      "The fastest is within {}x of the floor at {} of {} layers with a floor above {} ({}).\n", kWithinFloor,
      within, count, format_seconds(kFloorThatCounts),
      format_percent(static_cast<double>(within) / static_cast<double>(count)));
}

std::string strips_sentence(std::span<const LayerHeadroom> layers) {
  std::int64_t count = 0;
  std::int64_t slower = 0;
  const LayerHeadroom* worst = nullptr;
  for (const LayerHeadroom& each : layers) {
    if (!each.strips || !each.dense) {
      continue;
    }
    ++count;
    const auto ratio = [](const LayerHeadroom& one) { return one.strips->time_s / one.dense->time_s; };
    slower += ratio(each) > kBesideDense ? 1 : 0;
    worst = worst == nullptr || ratio(each) > ratio(*worst) ? &each : worst;
  }
  if (worst == nullptr) {
    return "Strips and dense_masked: at no layer do both have times and strips no more FLOP.\n";
  }
  return fmt::format(
      "Where strips execute no more FLOP than dense_masked, {} layers: slower than {}x of it at {}; "
      "{:.2f}x at worst ({}).\n",
      count, kBesideDense, slower, worst->strips->time_s / worst->dense->time_s, label_of(*worst->layer));
}

std::string error_sentence(std::span<const LayerHeadroom> layers) {
  const LayerHeadroom* worst = nullptr;
  for (const LayerHeadroom& each : layers) {
    if (each.worst_error && (worst == nullptr || *each.worst_error > *worst->worst_error)) {
      worst = &each;
    }
  }
  return worst == nullptr ? "No errors were recorded.\n"
                          : fmt::format("Largest relative error: {:.2e} ({}, {}).\n", *worst->worst_error,
                                        worst->worst_error_of, label_of(*worst->layer));
}

}  // namespace

std::optional<double> LayerHeadroom::auto_loss() const {
  return chosen && repeatable ? std::optional(chosen->time_s / repeatable->time_s) : std::nullopt;
}

std::vector<LayerHeadroom> headroom(std::span<const RecordedLayer> layers, const DeviceCeilings& ceilings,
                                    HeadroomStage stage) {
  std::vector<LayerHeadroom> all;
  for (const RecordedLayer& layer : layers) {
    if (layer.what.system != to_string(System::kOmniMoe) || layer.what.direction != "forward" ||
        !layer.what.on_one_device() || layer.header->device != ceilings.device) {
      continue;
    }
    if (auto one = headroom_of(layer, ceilings, stage)) {
      all.push_back(std::move(*one));
    }
  }
  return all;
}

Table headroom_table(std::span<const LayerHeadroom> layers) {
  std::vector<const LayerHeadroom*> order;
  for (const LayerHeadroom& each : layers) {
    order.push_back(&each);
  }
  std::ranges::stable_sort(order, std::ranges::greater{},
                           [](const LayerHeadroom* each) { return each->over_floor(); });
  Table table({{"layer", Align::kLeft, Need::kAlways},
               {"floor", Align::kRight, Need::kAlways},
               {"by", Align::kLeft, Need::kExtra},
               {"fastest", Align::kLeft, Need::kUsual},
               {"time", Align::kRight, Need::kAlways},
               {"/ floor", Align::kRight, Need::kAlways},
               {"auto ran", Align::kLeft, Need::kExtra},
               {"auto / repeatable"},
               {"strips / dense"},
               {"error"}});
  for (const LayerHeadroom* each : order) {
    std::optional<double> beside_dense;
    if (each->strips && each->dense) {
      beside_dense = each->strips->time_s / each->dense->time_s;
    }
    table.add_row({label_of(*each->layer), seconds_cell(each->floor_s), each->floor_by, each->fastest.name,
                   seconds_cell(each->fastest.time_s), ratio_cell(each->over_floor()),
                   each->chosen ? each->chosen->name : "-", ratio_or_dash(each->auto_loss()),
                   ratio_or_dash(beside_dense),
                   each->worst_error
                       ? TableCell(fmt::format("{:.1e}", *each->worst_error), *each->worst_error)
                       : TableCell("-")});
  }
  return table;
}

std::string headroom_text(std::span<const LayerHeadroom> layers) {
  return auto_sentence(layers) + floor_sentence(layers) + strips_sentence(layers) + error_sentence(layers);
}

}  // namespace moescope
