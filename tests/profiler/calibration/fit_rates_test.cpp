// Rates for auto, fitted to rows: made-up ones whose rates are known, and those recorded on every GPU that
// has a rates.json: what choosing by it costs there. Needs no GPU.
#include "profiler/calibration/fit_rates.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/recorded_rows.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

constexpr DeviceCeilingRates kCeilings{.memory_bytes_per_s = 3e12,
                                       .cache_bytes_per_s = 8e12,
                                       .matrix_flop_per_s = 8e14,
                                       .fp32_flop_per_s = 6e13};

/// What a schedule with known rates takes at points that each of memory, cache and FLOP bind somewhere.
RatePoints made_up(const std::vector<ScheduleRates>& truth) {
  RatePoints points{.device = "made up", .size = {.cache_bytes = 5e7}, .points = {}};
  for (const std::int64_t scale : {1, 10, 100, 1000}) {
    for (const int heavy : {0, 1, 2}) {
      RatePoint point;
      point.shape.grid_cols = 320;
      point.skew.effective_experts = 10;  // rows that the cache holds
      for (const ScheduleRates& rates : truth) {
        TimedSchedule recorded;
        const auto bytes = [&](MemoryLevel level, std::int64_t count) {
          recorded.cost.traffic.push_back({Stage::kExperts, level, Access::kRead, count, "made up"});
        };
        bytes(MemoryLevel::kHbm, scale * (heavy == 0 ? 10'000'000 : 100'000));
        bytes(MemoryLevel::kL2, scale * (heavy == 1 ? 40'000'000 : 200'000));
        const std::int64_t flop = scale * (heavy == 2 ? 4'000'000'000 : 1'000'000);
        recorded.cost.flop.push_back({Stage::kExperts, flop, flop});
        recorded.time_s =
            schedule_work(point.shape, point.skew, recorded.cost, rates, points.size).predicted_s(rates);
        recorded.layer_s = recorded.time_s + 1e-5;
        point.schedules[to_string(rates.schedule)] = std::move(recorded);
      }
      points.points[fmt::format("{} {}", scale, heavy)] = std::move(point);
    }
  }
  return points;
}

TEST(FitRates, FindTheRatesThatMadeTheTimes) {
  std::vector<ScheduleRates> truth = schedules_of_gpu();
  double factor = 1;
  for (ScheduleRates& rates : truth) {
    rates.fixed_s = 2e-5 * factor;
    rates.memory_bytes_per_s = 2e12 / factor;
    rates.cache_bytes_per_s = 5e12 / factor;
    rates.flop_per_s = 3e14 / factor;
    factor *= 1.2;
  }
  const RatePoints points = made_up(truth);
  const RateFit fit = fit_rates(points, kCeilings);
  ASSERT_EQ(fit.schedules.size(), truth.size());
  for (std::size_t i = 0; i < truth.size(); ++i) {
    EXPECT_NEAR(fit.schedules[i].fixed_s / truth[i].fixed_s, 1, 0.02);
    EXPECT_NEAR(fit.schedules[i].memory_bytes_per_s / truth[i].memory_bytes_per_s, 1, 0.02);
    EXPECT_NEAR(fit.schedules[i].cache_bytes_per_s / truth[i].cache_bytes_per_s, 1, 0.02);
    EXPECT_NEAR(fit.schedules[i].flop_per_s / truth[i].flop_per_s, 1, 0.02);
    EXPECT_EQ(fit.fits[i].points, 12);
    EXPECT_GT(fit.fits[i].least, 0.97);
    EXPECT_LT(fit.fits[i].most, 1.03);
  }
  const ChoiceLoss loss = choice_loss(points, fit.schedules);
  EXPECT_EQ(loss.points, 12);
  EXPECT_LT(loss.largest, 1.03);
  EXPECT_GE(loss.mean, 1);
}

TEST(FitRates, StayWithinWhatTheDeviceIsBuiltFor) {
  std::vector<ScheduleRates> truth = schedules_of_gpu();
  for (ScheduleRates& rates : truth) {
    rates.fixed_s = 2e-5;
    rates.memory_bytes_per_s = 1e15;
    rates.cache_bytes_per_s = 1e15;
    rates.flop_per_s = 1e18;
  }
  for (const ScheduleRates& rates : fit_rates(made_up(truth), kCeilings).schedules) {
    EXPECT_LE(rates.memory_bytes_per_s, 1.06 * kCeilings.memory_bytes_per_s);
    EXPECT_LE(rates.flop_per_s, 1.26 * kCeilings.matrix_flop_per_s);
  }
}

TEST(FitRates, NeedAsManyPointsAsNumbers) {
  RatePoints points = made_up(schedules_of_gpu());
  while (points.points.size() > 3) {
    points.points.erase(points.points.begin());
  }
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { fit_rates(points, kCeilings); }),
            "rows = 3 points: must be at least 4 with token_centric");
}

TEST(RatePoints, AreOfOneGpu) {
  std::vector<RecordedRun> runs(2);
  runs[0].header.device = "one";
  runs[0].header.machine["l2_bytes"] = 1e6;
  runs[1].header.device = "another";
  runs[1].header.machine["l2_bytes"] = 1e6;
  const std::vector<std::vector<RecordedRun>> both = {runs};
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { rate_points(both); }),
            "rows = one and another: must be of one device");
  EXPECT_THROW(rate_points({}), InvalidArgument);
}

/// What the rates of a device were fitted to: the files that they name, as far as the folder of rows has
/// them.
std::vector<fs::path> fitted_rows(const fs::path& results, const GpuRates& rates) {
  std::vector<fs::path> files;
  for (const fs::path& file : test::recorded_rows(results.filename())) {
    if (rates.rows.find(file.filename().string() + " ") != std::string::npos) {
      files.push_back(file);
    }
  }
  return files;
}

TEST(RecordedRates, ChooseWhatWasFastestOrNearlySoAtEveryRecordedPointOfEveryDevice) {
  int devices = 0;
  std::size_t most_points = 0;
  const auto folders = device_folders(test::source_path(kDevicesFolder));
  for (const fs::path& results : test::recorded_gpus()) {
    const std::string name = results.filename().string();
    const auto folder = std::ranges::find_if(folders, [&](const DeviceFolder& each) {
      return each.path.filename().string().starts_with(name + "-") && each.has(kRatesFile);
    });
    if (folder == folders.end()) {
      continue;
    }
    const RatePoints points =
        read_rate_points(fitted_rows(results, read_gpu_rates(folder->path / kRatesFile)));
    EXPECT_EQ(folder_of(folders, points.device), &*folder) << points.device;
    SCOPED_TRACE(folder->path.filename().string());
    ++devices;
    most_points = std::max(most_points, points.points.size());
    const GpuRates rates = read_gpu_rates(folder->path / kRatesFile);
    // Predicted over measured, either way: less near where layers drawn at random are among them.
    const double most = rates.rows.find("random-shapes.") != std::string::npos ? 3 : 1.6;
    std::map<std::string, std::size_t> judged;
    for (const auto& [label, point] : points.points) {
      for (const ScheduleRates& each : rates.schedules) {
        const auto found = point.schedules.find(to_string(each.schedule));
        if (found == point.schedules.end() || !each.hold_for(point.shape)) {
          continue;
        }
        ++judged[found->first];
        const ScheduleCandidate candidate =
            predict_schedule(point.shape, point.skew, found->second.cost, each, points.size);
        EXPECT_LT(candidate.predicted_s, most * found->second.time_s) << label << ' ' << candidate.reason;
        EXPECT_GT(candidate.predicted_s, found->second.time_s / most) << label << ' ' << candidate.reason;
      }
    }
    for (const ScheduleRates& each : rates.schedules) {  // all but grids that its rates are not of
      EXPECT_GE(judged[to_string(each.schedule)], points.points.size() / 2) << to_string(each.schedule);
    }
    const ChoiceLoss loss = choice_loss(points, rates.schedules, rates.selection);
    EXPECT_EQ(loss.points, static_cast<std::int64_t>(points.points.size()));
    EXPECT_LE(loss.largest, 1.5);
    EXPECT_LE(loss.mean, 1.015);
    // The file is what the rows give.
    const RateFit again = fit_rates(points, folder->ceilings);
    for (std::size_t i = 0; i < again.schedules.size(); ++i) {
      const ScheduleRates& then = rates.schedules[i];
      const ScheduleRates& now = again.schedules[i];
      EXPECT_NEAR(now.fixed_s / then.fixed_s, 1, 0.02) << to_string(then.schedule);
      EXPECT_NEAR(now.memory_bytes_per_s / then.memory_bytes_per_s, 1, 0.02) << to_string(then.schedule);
      EXPECT_NEAR(now.cache_bytes_per_s / then.cache_bytes_per_s, 1, 0.02) << to_string(then.schedule);
      EXPECT_NEAR(now.flop_per_s / then.flop_per_s, 1, 0.02) << to_string(then.schedule);
    }
  }
  EXPECT_GE(devices, 2);
  EXPECT_GE(most_points, 51U);
}

/// At a point that nothing was fitted to.
TEST(RecordedRates, TakeRowsAloneWhereTheyWereRecordedFastest) {
  const auto folders = device_folders(test::source_path(kDevicesFolder));
  for (const fs::path& results : test::recorded_gpus()) {
    const fs::path file = results / "shift.jsonl.gz";
    if (!fs::exists(file)) {
      continue;
    }
    const RatePoints points = read_rate_points(std::array{file});
    const RatePoint& even = points.points.at("L512_d1024_N320x320_K512_zipf:0");
    double best_predicted_s = std::numeric_limits<double>::infinity();
    std::string chosen;
    for (const ScheduleRates& each :
         read_gpu_rates(folder_of(folders, points.device)->path / kRatesFile).schedules) {
      const TimedSchedule& recorded = even.schedules.at(to_string(each.schedule));
      EXPECT_GE(recorded.time_s, even.schedules.at("staircase:rows").time_s) << to_string(each.schedule);
      const double predicted_s =
          predict_schedule(even.shape, even.skew, recorded.cost, each, points.size).predicted_s;
      if (predicted_s < best_predicted_s) {
        best_predicted_s = predicted_s;
        chosen = to_string(each.schedule);
      }
    }
    EXPECT_EQ(chosen, "staircase:rows");
  }
}

}  // namespace
}  // namespace moescope
