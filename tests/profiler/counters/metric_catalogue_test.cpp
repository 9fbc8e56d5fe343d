#include "profiler/counters/metric_catalogue.hpp"

#include <gtest/gtest.h>

#include <set>

#include "tests/support/error_text.hpp"
#include "tests/support/fake_counters.hpp"

namespace moescope {
namespace {

constexpr const char* kSmall = R"({
  "chips": {"A": "sm_1", "B": "sm_2"},
  "sets": {"both": ["bytes", "hit"]},
  "metrics": [
    {"name": "bytes", "unit": "bytes", "meaning": "m",
     "formulas": [{"terms": {"u__sectors.sum": 32, "u__other.sum": 1}}, {"chips": ["B"], "terms": {"u__bytes.sum": 1}}]},
    {"name": "hit", "unit": "fraction", "meaning": "m",
     "formulas": [{"chips": ["A"], "terms": {"u__hit.sum": 1}, "over": {"u__all.sum": 2}}]}
  ]})";

std::vector<std::string> names_of(const std::vector<Metric>& metrics) {
  std::vector<std::string> names;
  for (const auto& metric : metrics) {
    names.push_back(metric.name);
  }
  return names;
}

TEST(MetricCatalogue, ResolvesSetsOwnNamesAndCountersOnce) {
  const auto catalogue = MetricCatalogue::parse(kSmall, "small");
  const auto selection =
      catalogue.resolve("A", std::vector<std::string>{"hit", "both", "u__raw.max", "u__raw.max"});
  EXPECT_EQ(names_of(selection.metrics), (std::vector<std::string>{"hit", "bytes", "u__raw.max"}));
  EXPECT_TRUE(selection.unavailable.empty());
  EXPECT_EQ(selection.counters(), (std::vector<std::string>{"u__hit.sum", "u__all.sum", "u__other.sum",
                                                            "u__sectors.sum", "u__raw.max"}));
}

TEST(MetricCatalogue, TakesTheChipsOwnFormulaAndSaysWhereThereIsNone) {
  const auto catalogue = MetricCatalogue::parse(kSmall, "small");
  const auto on_b = catalogue.resolve("B", std::vector<std::string>{"both"});
  EXPECT_EQ(on_b.counters(), std::vector<std::string>{"u__bytes.sum"});
  ASSERT_EQ(on_b.unavailable.size(), 1U);
  EXPECT_EQ(on_b.unavailable[0].name, "hit");
  EXPECT_EQ(on_b.unavailable[0].reason, "no formula for chip B");
  const auto on_unknown = catalogue.resolve("C", std::vector<std::string>{"both", "u__raw.sum"});
  EXPECT_EQ(on_unknown.unavailable.size(), 2U);
  EXPECT_EQ(on_unknown.metrics.size(), 1U);
}

TEST(MetricCatalogue, RefusesANameThatIsNothing) {
  const auto catalogue = MetricCatalogue::parse(kSmall, "small");
  EXPECT_NE(test::error_text<InvalidArgument>([&] {
              catalogue.resolve("A", std::vector<std::string>{"byts"});
            }).find("metrics = byts"),
            std::string::npos);
}

TEST(MetricCatalogue, RefusesDataThatDoesNotHoldTogether) {
  for (
      const char* bad :
      {"{", R"({"chips": {}, "sets": {}})", R"({"chips": {}, "sets": {"s": ["x"]}, "metrics": []})",
       R"({"chips": {}, "sets": {}, "metrics": [{"name": "x", "unit": "", "meaning": "",
            "formulas": [{"chips": ["A"], "terms": {}}]}]})",
       R"({"chips": {}, "sets": {}, "metrics": [{"name": "x__y", "unit": "", "meaning": "", "formulas": []}]})",
       R"({"chips": {}, "sets": {}, "metrics": [{"name": "x", "unit": "", "meaning": "", "formulas": []},
                                                 {"name": "x", "unit": "", "meaning": "", "formulas": []}]})"}) {
    EXPECT_THROW(MetricCatalogue::parse(bad, "bad"), FileError) << bad;
  }
  const auto error = [](const std::string& text) {
    return test::error_text<FileError>([&] { MetricCatalogue::parse(text, "c"); });
  };
  EXPECT_EQ(error(R"({"chips": {}, "sets": {}, "metrics": [{"name": "x", "unit": 1}]})"),
            "c: metrics[0].unit: 1: must be a text");
  EXPECT_EQ(error(R"({"chips": {}, "sets": {}, "metrics": [], "metrics": []})"),
            "c: key 'metrics' stands there twice");
  EXPECT_EQ(error(R"({"chips": )" + std::string(100000, '[')).find("c: chips[0]"), 0U);
}

TEST(MetricCatalogue, EvaluatesFormulas) {
  const auto catalogue = MetricCatalogue::parse(kSmall, "small");
  const auto selection = catalogue.resolve("A", std::vector<std::string>{"both"});
  const RangeCounters range{
      "r", {{"u__sectors.sum", 10}, {"u__other.sum", 3}, {"u__hit.sum", 6}, {"u__all.sum", 4}}};
  const auto values = evaluate(selection, CounterPlan{}, range);
  ASSERT_EQ(values.size(), 2U);
  EXPECT_EQ(values[0].value, 323);
  EXPECT_EQ(values[0].unit, "bytes");
  EXPECT_EQ(values[1].value, 0.75);
}

TEST(MetricCatalogue, EveryMetricAskedForHasAValueOrAReason) {
  const auto catalogue = MetricCatalogue::parse(kSmall, "small");
  const auto selection = catalogue.resolve("A", std::vector<std::string>{"both"});
  CounterPlan plan;
  plan.unavailable.push_back({"u__other.sum", "not on this chip"});
  const auto values =
      evaluate(selection, plan, {"r", {{"u__sectors.sum", 10}, {"u__hit.sum", 6}, {"u__all.sum", 0}}});
  ASSERT_EQ(values.size(), 2U);
  EXPECT_FALSE(values[0].value.has_value());
  EXPECT_EQ(values[0].reason, "u__other.sum: not on this chip");
  EXPECT_FALSE(values[1].value.has_value());
  EXPECT_EQ(values[1].reason, "u__all.sum is 0 in range r");
  const auto lost = evaluate(selection, {}, {"r", {}});
  EXPECT_NE(lost[1].reason.find("not given by the measurement of range r"), std::string::npos);
  const auto absent =
      evaluate(catalogue.resolve("B", std::vector<std::string>{"hit"}), {}, {"r", {{"u__hit.sum", 1}}});
  ASSERT_EQ(absent.size(), 1U);
  EXPECT_EQ(absent[0].reason, "no formula for chip B");
}

TEST(MetricCatalogue, TheBuiltInOneHasItsSetsOnEveryChip) {
  const auto& catalogue = MetricCatalogue::builtin();
  EXPECT_EQ(catalogue.chips().at("GH100"), "sm_90");
  std::set<std::string> in_full(catalogue.sets().at("full").begin(), catalogue.sets().at("full").end());
  for (const auto& [chip, architecture] : catalogue.chips()) {
    for (const auto& [set, members] : catalogue.sets()) {
      const auto selection = catalogue.resolve(chip, std::vector<std::string>{set});
      EXPECT_EQ(selection.metrics.size() + selection.unavailable.size(), members.size()) << chip << set;
      EXPECT_LE(selection.unavailable.size(), 3U) << chip << ' ' << set;
    }
  }
  EXPECT_TRUE(catalogue.resolve("GH100", std::vector<std::string>{"full"}).unavailable.empty());
  for (const auto& metric : catalogue.metrics("GH100")) {
    EXPECT_TRUE(in_full.contains(metric.name)) << metric.name;
    EXPECT_FALSE(metric.meaning.empty() || metric.unit.empty()) << metric.name;
  }
}

TEST(MetricCatalogue, GoesWithAnySource) {
  test::FakeCounters source;
  source.missing = {"l1tex__m_xbar2l1tex_read_bytes.sum"};
  source.lost = {"dram__bytes_write.sum"};
  source.range_values["experts"]["dram__bytes_read.sum"] = 420e6;
  const auto chip = source.plan({}).chip;
  const auto selection = MetricCatalogue::builtin().resolve(
      chip, std::vector<std::string>{"hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "full"});
  const auto plan = source.plan(selection.counters());
  int prepared = 0;
  std::vector<std::size_t> ran;
  const auto ranges = source.measure(
      plan, {{"schedule", "experts"}, [&] { ++prepared; }, [&](std::size_t range) { ran.push_back(range); }});
  EXPECT_EQ(prepared, plan.passes);
  EXPECT_EQ(ran.size(), 2 * static_cast<std::size_t>(plan.passes));
  ASSERT_EQ(ranges.size(), 2U);
  const auto values = evaluate(selection, plan, ranges[1]);
  EXPECT_EQ(values[0].value, 420e6);
  EXPECT_FALSE(values[1].value.has_value());
  EXPECT_EQ(values[2].reason, "l1tex__m_xbar2l1tex_read_bytes.sum: not a counter of this chip");
  EXPECT_EQ(values.size(), MetricCatalogue::builtin().sets().at("full").size());
  source.not_permitted = "RmProfilingAdminOnly is 1";
  EXPECT_THROW(source.measure(plan, {{"a"}, {}, [](std::size_t) {}}), CountersUnavailable);
}

}  // namespace
}  // namespace moescope
