#include "experiments/calibration/rate_study.hpp"

#include <fmt/format.h>

#include <iostream>

#include "core/devices/gpu_rates.hpp"
#include "core/layer/layer_shape.hpp"
#include "experiments/points/study_point.hpp"
#include "profiler/study/layer_rows.hpp"

namespace moescope {
namespace {

struct MeasuredShape {
  std::int64_t num_tokens;
  std::int64_t top_k;
  std::int64_t side;  ///< of the grid
};

/// From a batch that one wave of blocks serves to one that tensor cores bound, at the grid of Table A; then
/// smaller and larger grids, the last one beyond what rows alone take in one segment.
constexpr MeasuredShape kShapes[] = {{1, 512, 320},    {64, 512, 320},    {256, 512, 320},  {1024, 128, 320},
                                     {1024, 512, 320}, {1024, 4096, 320}, {4096, 512, 320}, {16384, 512, 320},
                                     {64, 512, 128},   {1024, 512, 128},  {64, 512, 640},   {1024, 512, 640}};
constexpr const char* kWorkloads[] = {"gaussian:1", "zipf:1", "hot:1,1"};

std::vector<StudyPoint> study_points(std::uint64_t seed) {
  std::vector<StudyPoint> points;
  for (const MeasuredShape& measured : kShapes) {
    for (const char* const text : kWorkloads) {
      LayerShape shape = find_preset("table-a-1024-512").shape;
      shape.num_tokens = measured.num_tokens;
      shape.top_k = measured.top_k;
      shape.grid_rows = measured.side;
      shape.grid_cols = measured.side;
      points.push_back({named_workload(text), shape, seed});
    }
  }
  return points;
}

}  // namespace

std::vector<ResultRow> rate_study_rows(MoeBackend& backend, const CommonOptions& options) {
  StudyPlan plan = study_plan(options);
  plan.schedules.clear();
  for (const ScheduleRates& candidate : schedules_of_gpu()) {
    plan.schedules.push_back(candidate.schedule);
  }
  const std::vector<StudyPoint> points = study_points(options.seed);
  Progress progress(std::cerr, progress_style(options), static_cast<std::int64_t>(points.size()));
  PointStudy study(backend);
  std::vector<ResultRow> rows;
  for (const StudyPoint& point : points) {
    progress.begin(fmt::format("{} {}", point.shape.label(), point.workload.name));
    for (ResultRow& row :
         study_rows(study.study(point, plan, [&](std::string_view what) { progress.detail(what); }))) {
      rows.push_back(std::move(row));
    }
    progress.advance();
  }
  return rows;
}

}  // namespace moescope
