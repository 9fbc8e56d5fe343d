#include "core/schedule/schedule_info.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "core/schedule/schedule.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

TEST(ScheduleInfo, HasEverySchedule) {
  for (const ScheduleKind kind :
       {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric, ScheduleKind::kStaircase,
        ScheduleKind::kDenseMasked, ScheduleKind::kSparseLibrary, ScheduleKind::kAuto}) {
    for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
      for (const bool deterministic : {true, false}) {
        const std::string name =
            to_string(ScheduleOptions{.kind = kind, .deterministic = deterministic, .strip_rule = rule});
        ASSERT_NE(find_schedule_info(name), nullptr) << name;
        EXPECT_LT(schedule_order(name), schedule_infos().size()) << name;
      }
    }
  }
  EXPECT_EQ(find_schedule_info("`touch x`"), nullptr);
  EXPECT_EQ(schedule_order("`touch x`"), schedule_infos().size());
}

TEST(ScheduleInfo, KnowsRulesWhateverTheirArguments) {
  EXPECT_EQ(find_schedule_info("padded:1.25"), find_schedule_info("padded:2"));
  EXPECT_EQ(find_schedule_info("token_rounding:up:64")->name, "token_rounding");
  EXPECT_EQ(find_schedule_info("staircase:columns"), nullptr);
}

TEST(ScheduleInfo, NoTwoLookAlike) {
  std::set<std::string_view> names;
  std::set<std::string_view> colours;
  std::set<std::string_view> markers;
  std::set<int> point_types;
  for (const ScheduleInfo& info : schedule_infos()) {
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_TRUE(colours.insert(info.colour).second) << info.name;
    EXPECT_TRUE(markers.insert(info.marker).second) << info.name;
    EXPECT_TRUE(point_types.insert(info.point_type).second) << info.name;
    EXPECT_EQ(info.colour.size(), 7U) << info.name;
    EXPECT_EQ(info.colour.find_first_not_of("0123456789ABCDEF", 1), std::string_view::npos) << info.name;
  }
}

TEST(ScheduleInfo, NotebooksReadTheSameTable) {
  EXPECT_EQ(test::read_text(test::source_path("core/schedule/schedules.json")), schedule_infos_json())
      << "core/schedule/schedules.json is what schedule_infos_json() says";
}

}  // namespace
}  // namespace moescope
