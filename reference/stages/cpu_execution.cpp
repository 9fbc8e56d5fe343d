#include "reference/stages/cpu_execution.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>

namespace moescope::reference {
namespace {

/// Runs `body` and records its time as `stage`.
template <class Body>
void timed(std::vector<StageTime>& times, Stage stage, const Body& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  times.push_back({stage, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()});
}

/// Whose order of work is the schedule's.
constexpr std::array kByItem = {Stage::kSchedule, Stage::kExpertScores, Stage::kExpertCombine,
                                Stage::kExperts,  Stage::kExpertsDgrad, Stage::kExpertsWgrad};

}  // namespace

std::string cpu_kernels(Stage stage, std::span<const Stage> stages, ScheduleKind kind) {
  if (stage != Stage::kLayer) {
    const bool by_item = std::ranges::find(kByItem, stage) != kByItem.end();
    return fmt::format("cpu {}{}", to_string(stage), by_item ? fmt::format(" ({})", to_string(kind)) : "");
  }
  std::string all;
  for (const Stage own : stages) {
    all += (all.empty() ? "" : " + ") + cpu_kernels(own, stages, kind);
  }
  return all;
}

std::vector<StageTime> CpuExecution::run(L2State l2) {
  if (l2 == L2State::kCold) {
    empty_cache();
  }
  std::vector<StageTime> times;
  std::vector<StageTime> layer;
  timed(layer, Stage::kLayer, [&] {
    for (const Stage stage : stages_) {
      timed(times, stage, [&] { enqueue(stage); });
    }
  });
  times.push_back(layer.front());
  return times;
}

void CpuExecution::enqueue(Stage stage) {
  compute(stage);
  if (stage == stages_.back()) {
    output_ = y_.to(dtype_);
    y_ = {};
  }
}

void CpuExecution::empty_cache() {
  const std::vector<std::byte> flush(kFlushBytes, std::byte{1});  // given back before the layer runs
}

}  // namespace moescope::reference
