#include "core/schedule/schedule_info.hpp"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

namespace moescope {
namespace {

constexpr std::array kInfos = {
    ScheduleInfo{"token_centric", "#0072B2", "s", 5},
    ScheduleInfo{"expert_centric", "#D55E00", "o", 7},
    ScheduleInfo{"staircase", "#009E73", "^", 9},
    ScheduleInfo{"staircase:atomics", "#CC79A7", "v", 11},
    ScheduleInfo{"staircase:rows", "#004D38", "p", 15},
    ScheduleInfo{"staircase:rows:atomics", "#882255", "*", 3},
    ScheduleInfo{"dense_masked", "#E69F00", "D", 13},
    ScheduleInfo{"sparse_library", "#56B4E9", "+", 1},
    ScheduleInfo{"auto", "#000000", "x", 2, true},
    ScheduleInfo{"tuned", "#777777", "d", 12, true},
};

}  // namespace

std::span<const ScheduleInfo> schedule_infos() { return kInfos; }

const ScheduleInfo* find_schedule_info(std::string_view name) {
  const auto* const found = std::ranges::find(kInfos, name, &ScheduleInfo::name);
  return found == kInfos.end() ? nullptr : found;
}

std::size_t schedule_order(std::string_view name) {
  return static_cast<std::size_t>(std::ranges::find(kInfos, name, &ScheduleInfo::name) - kInfos.begin());
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
