#include "core/schedule/schedule_info.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"

namespace moescope {
namespace {

using enum ScheduleKind;

constexpr std::array kInfos = {
    ScheduleInfo{.name = "token_centric",
                 .colour = "#0072B2",
                 .marker = "s",
                 .point_type = 5,
                 .kind = kTokenCentric,
                 .fused = true},
    ScheduleInfo{.name = "expert_centric",
                 .colour = "#D55E00",
                 .marker = "o",
                 .point_type = 7,
                 .kind = kExpertCentric,
                 .groups = true,
                 .fused = true},
    ScheduleInfo{.name = "staircase",
                 .colour = "#009E73",
                 .marker = "^",
                 .point_type = 9,
                 .kind = kStaircase,
                 .groups = true,
                 .strips = true,
                 .fused = true},
    ScheduleInfo{.name = "staircase:atomics",
                 .colour = "#CC79A7",
                 .marker = "v",
                 .point_type = 11,
                 .kind = kStaircase,
                 .groups = true,
                 .strips = true,
                 .fused = true,
                 .deterministic = false},
    ScheduleInfo{.name = "staircase:rows",
                 .colour = "#004D38",
                 .marker = "p",
                 .point_type = 15,
                 .kind = kStaircase,
                 .groups = true,
                 .strips = true,
                 .fused = true,
                 .strip_rule = StripRule::kRowsOnly},
    ScheduleInfo{.name = "staircase:rows:atomics",
                 .colour = "#882255",
                 .marker = "*",
                 .point_type = 3,
                 .kind = kStaircase,
                 .groups = true,
                 .strips = true,
                 .fused = true,
                 .strip_rule = StripRule::kRowsOnly,
                 .deterministic = false},
    ScheduleInfo{
        .name = "dense_masked", .colour = "#E69F00", .marker = "D", .point_type = 13, .kind = kDenseMasked},
    ScheduleInfo{.name = "sparse_library",
                 .colour = "#56B4E9",
                 .marker = "+",
                 .point_type = 1,
                 .kind = kSparseLibrary,
                 .library = true},
    // May resolve to one with groups or strips.
    ScheduleInfo{.name = "auto",
                 .colour = "#000000",
                 .marker = "x",
                 .point_type = 2,
                 .kind = kAuto,
                 .groups = true,
                 .strips = true,
                 .chosen = true},
    ScheduleInfo{.name = "padded",
                 .colour = "#332288",
                 .marker = "h",
                 .point_type = 4,
                 .kind = std::nullopt,
                 .groups = true,
                 .fused = true,
                 .rule = true},
    ScheduleInfo{.name = "token_rounding",
                 .colour = "#AA4499",
                 .marker = "X",
                 .point_type = 6,
                 .kind = std::nullopt,
                 .groups = true,
                 .fused = true,
                 .rule = true},
    ScheduleInfo{.name = "tuned",
                 .colour = "#777777",
                 .marker = "d",
                 .point_type = 12,
                 .kind = std::nullopt,
                 .chosen = true},
};

/// A rule has its arguments behind it: "padded:1.25".
bool names(const ScheduleInfo& info, std::string_view name) {
  return info.name == (info.rule ? name.substr(0, name.find(':')) : name);
}

}  // namespace

std::span<const ScheduleInfo> schedule_infos() { return kInfos; }

const ScheduleInfo& schedule_info(ScheduleKind kind) {
  const auto* const found = std::ranges::find(kInfos, std::optional(kind), &ScheduleInfo::kind);
  if (found == kInfos.end()) {
    throw InternalError("a schedule without info");
  }
  return *found;
}

std::vector<ScheduleKind> named_schedules(bool with_library) {
  std::vector<ScheduleKind> kinds;
  for (const ScheduleInfo& info : kInfos) {
    if (info.kind && !info.chosen && info.plain() && (with_library || !info.library)) {
      kinds.push_back(*info.kind);
    }
  }
  return kinds;
}

const ScheduleInfo* find_schedule_info(std::string_view name) {
  const auto* const found =
      std::ranges::find_if(kInfos, [&](const ScheduleInfo& info) { return names(info, name); });
  return found == kInfos.end() ? nullptr : found;
}

std::size_t schedule_order(std::string_view name) {
  return static_cast<std::size_t>(
      std::ranges::find_if(kInfos, [&](const ScheduleInfo& info) { return names(info, name); }) -
      kInfos.begin());
}

std::string schedule_infos_json() {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ScheduleInfo& info : kInfos) {
    list.push_back(
        {{"name", info.name}, {"colour", info.colour}, {"marker", info.marker}, {"chosen", info.chosen}});
  }
  return list.dump(1) + '\n';
}

}  // namespace moescope
