#include "profiler/study/fastest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace moescope {
namespace {

const StageSamples& layer_of(const ScheduleStudy& schedule) { return *schedule.times.find(Stage::kLayer); }

/// "1.31x to 1.44x".
std::string bounds_text(const RatioSummary& ratio) {
  return fmt::format("{:.2f}x to {:.2f}x", ratio.low, ratio.high);
}

}  // namespace

bool is_measured(const ScheduleStudy& schedule) {
  return schedule.status == Status::kOk && schedule.times.find(Stage::kLayer) != nullptr;
}

std::vector<Standing> standings(const LayerStudy& study) {
  std::vector<Standing> all;
  for (const ScheduleStudy& schedule : study.schedules) {
    if (is_measured(schedule)) {
      all.push_back({&schedule, schedule.name(), false, std::nullopt});
    }
  }
  return ranked(std::move(all));
}

std::vector<Standing> ranked(std::vector<Standing> all) {
  std::ranges::stable_sort(all, {}, [](const Standing& one) { return layer_of(*one.schedule).median_s(); });
  for (Standing& one : all) {
    one.fastest = &one == &all.front();
    one.ratio = speed_up(&layer_of(*one.schedule), &layer_of(*all.front().schedule));
  }
  return all;
}

std::string conclusion_text(const std::vector<Standing>& standings) {
  if (standings.empty()) {
    return "nothing was measured";
  }
  const std::string fastest = standings.front().name;
  if (standings.size() == 1) {
    return fmt::format("{} alone was measured", fastest);
  }
  std::vector<std::string> tied = {fastest};
  const Standing* next = nullptr;  // the nearest that is slower for sure
  for (const Standing& one : standings) {
    if (one.tied()) {
      tied.push_back(one.name);
    } else if (!one.fastest && one.ratio && next == nullptr) {
      next = &one;
    }
  }
  const std::string lead = next == nullptr
                               ? ""
                               : fmt::format("{:.2f}x over {} ({}: more than the noise)", next->ratio->median,
                                             next->name, bounds_text(*next->ratio));
  if (tied.size() == 1) {
    return lead.empty() ? fmt::format("{} has the shortest time", fastest)
                        : fmt::format("{} is the fastest, {}", fastest, lead);
  }
  const std::string last = tied.back();
  tied.pop_back();
  return fmt::format("{} and {} cannot be told apart{}{}", fmt::join(tied, ", "), last,
                     lead.empty() ? "" : "; ", lead);
}

std::optional<double> usual_spread(const std::vector<LayerStudy>& studies) {
  std::vector<double> spreads;
  for (const LayerStudy& study : studies) {
    for (const ScheduleStudy& schedule : study.schedules) {
      if (is_measured(schedule)) {
        spreads.push_back(layer_of(schedule).spread());
      }
    }
  }
  return spreads.empty() ? std::nullopt : std::optional(median(std::move(spreads)));
}

}  // namespace moescope
