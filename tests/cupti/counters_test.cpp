// The host half needs the toolkit's libcupti and no GPU, so these run wherever the CUDA build does; those
// that count need a GPU and say so.
#include "profiler/counters/cupti_counters.hpp"

#include <gtest/gtest.h>

#include <string>

#include "core/base/error.hpp"
#include "kernels/probes/known_work.hpp"
#include "profiler/counters/counter_check.hpp"
#include "profiler/counters/metric_catalogue.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"

#ifndef MOESCOPE_HAVE_CUPTI
#define MOESCOPE_NEEDS_CUPTI() GTEST_SKIP() << "this build has no CUPTI"
#else
#define MOESCOPE_NEEDS_CUPTI() ASSERT_TRUE(cupti_status().host) << cupti_status().reason
#endif

namespace moescope {
namespace {

using Names = std::vector<std::string>;

TEST(CuptiHost, KnowsEveryCounterOfTheCatalogueOnEveryChip) {
  MOESCOPE_NEEDS_CUPTI();
  const auto& catalogue = MetricCatalogue::builtin();
  for (const auto& [chip, architecture] : catalogue.chips()) {
    Names ours;
    for (const auto& metric : catalogue.metrics(chip)) {
      ours.push_back(metric.name);
    }
    const auto counters = catalogue.resolve(chip, ours).counters();
    const auto plan = plan_counters(chip, counters);
    EXPECT_EQ(plan.chip, chip);
    EXPECT_EQ(plan.counters.size(), counters.size()) << chip;
    for (const auto& missing : plan.unavailable) {
      ADD_FAILURE() << chip << ": " << missing.name << ": " << missing.reason;
    }
    EXPECT_GE(plan.passes, 1);
  }
}

TEST(CuptiHost, PassesOfTheSetsStayFew) {
  MOESCOPE_NEEDS_CUPTI();
  const auto passes = [](const char* set) {
    return plan_counters("GH100", MetricCatalogue::builtin().resolve("GH100", Names{set}).counters()).passes;
  };
  EXPECT_LE(passes("traffic"), 5);
  EXPECT_LE(passes("tensor"), 5);
  EXPECT_LE(passes("full"), 10);
  EXPECT_EQ(plan_counters("GH100", Names{"dram__bytes_read.sum", "dram__bytes_write.sum"}).passes, 1);
  EXPECT_EQ(plan_counters("GH100", Names{}).passes, 0);
}

TEST(CuptiHost, AnUnknownCounterIsUnavailableAndChangesNothingElse) {
  MOESCOPE_NEEDS_CUPTI();
  const Names good = {"dram__bytes_read.sum", "lts__t_sectors_op_read.sum"};
  const auto plan = plan_counters(
      "GH100", Names{good[0], "dram__bytes_red.sum", "lts__t_sectors_op_read", good[0], good[1]});
  EXPECT_EQ(plan.counters, good);
  ASSERT_EQ(plan.unavailable.size(), 2U);
  EXPECT_EQ(plan.unavailable[0].name, "dram__bytes_red.sum");
  EXPECT_NE(plan.unavailable[0].reason.find("GH100 has no such counter"), std::string::npos);
  EXPECT_EQ(plan.passes, plan_counters("GH100", good).passes);
}

TEST(CuptiHost, RefusesAChipItDoesNotKnow) {
  MOESCOPE_NEEDS_CUPTI();
  EXPECT_NE(test::error_text<InvalidArgument>([] { plan_counters("GH999", Names{}); }).find("chip = GH999"),
            std::string::npos);
}

TEST(CuptiHost, StatusNamesTheLibraryAndWhatKeepsCountersAway) {
  MOESCOPE_NEEDS_CUPTI();
  const auto status = cupti_status();
  EXPECT_NE(status.version.find('.'), std::string::npos);
  EXPECT_NE(status.path.find("libcupti"), std::string::npos);
  EXPECT_NE(status.permitted, !status.reason.empty()) << status.reason;
}

TEST(CuptiHost, WithoutAGpuCountersAreUnavailableAndSayWhy) {
  MOESCOPE_NEEDS_CUPTI();
  const auto text = test::error_text<CountersUnavailable>([] { make_cupti_counters(); });
  EXPECT_EQ(text.rfind("no hardware counters: ", 0) == 0, cuda::why_no_device().has_value()) << text;
}

TEST(CuptiCounters, AreRightOfKnownWork) {
  MOESCOPE_NEEDS_CUPTI();
  MOESCOPE_NEEDS_GPU();
  const auto source = make_cupti_counters();
  const auto check = check_counters(*source, make_cuda_known_work(), {});
  EXPECT_GE(check.checked.size(), 30U);
  for (const auto& one : check.checked) {
    EXPECT_TRUE(one.holds()) << one.work << ' ' << one.known.metric << ": " << one.measured.value_or(-1)
                             << " of " << one.known.value << ' ' << one.reason;
  }
}

TEST(CuptiCounters, AnErrorInsideARangeLeavesThemUsable) {
  MOESCOPE_NEEDS_CUPTI();
  MOESCOPE_NEEDS_GPU();
  const auto source = make_cupti_counters();
  const auto plan = source->plan(Names{"dram__bytes_read.sum"});
  EXPECT_THROW(source->measure(plan, {{"a"}, {}, [](std::size_t) { throw NoDevice("as if"); }}), NoDevice);
  int runs = 0;
  const auto ranges = source->measure(plan, {{"a", "b"}, {}, [&](std::size_t) { ++runs; }});
  EXPECT_EQ(runs, 2 * plan.passes);
  ASSERT_EQ(ranges.size(), 2U);
  EXPECT_EQ(ranges[1].range, "b");
  EXPECT_EQ(ranges[1].values.count("dram__bytes_read.sum"), 1U);
}

TEST(CuptiCounters, RefuseTwoRangesOfOneName) {
  MOESCOPE_NEEDS_CUPTI();
  MOESCOPE_NEEDS_GPU();
  const auto source = make_cupti_counters();
  EXPECT_THROW(source->measure(source->plan({}), {{"a", "a"}, {}, [](std::size_t) {}}), InternalError);
}

TEST(CuptiCounters, TakeAsManyRangesAsAreAskedFor) {
  MOESCOPE_NEEDS_CUPTI();
  MOESCOPE_NEEDS_GPU();
  const auto source = make_cupti_counters();
  Names names;
  for (int i = 0; i < 100; ++i) {
    names.push_back("range_" + std::to_string(i));
  }
  const auto plan = source->plan(Names{"sm__cycles_elapsed.max", "lts__t_sectors_op_read.sum"});
  EXPECT_EQ(source->measure(plan, {names, {}, [](std::size_t) {}}).size(), names.size());
}

}  // namespace
}  // namespace moescope
