#include "profiler/limits/doctor.hpp"

#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

namespace moescope {
namespace {

MachineFacts healthy() {
  MachineFacts facts;
  facts.version = "0.1.0";
  facts.build_type = "Release";
  facts.git_revision = "0123456789abcdef";
  facts.cpu = "a CPU";
  facts.cpu_threads = 8;
  constexpr std::int64_t kGibi = std::int64_t{1} << 30;
  facts.gpu =
      GpuFacts{"a GPU", "580.1", "13.0", "13.0", 90, 132, 80 * kGibi, 79 * kGibi, {1.2e9, 1.98e9, 40}};
  facts.cupti = {"13.0 (API 130001)", "/lib/libcupti.so", true, true, {}};
  facts.counters_admin_only = false;
  return facts;
}

std::map<std::string, Finding> by_name(const MachineFacts& facts) {
  std::map<std::string, Finding> found;
  for (const auto& finding : diagnose(facts)) {
    EXPECT_TRUE(found.emplace(finding.what, finding).second) << finding.what;
    EXPECT_EQ(finding.verdict == Verdict::kOk, finding.remedy.empty() && finding.text != "no GPU");
  }
  EXPECT_EQ(found.size(), 8U);
  return found;
}

TEST(Doctor, FindsNothingToSayOfAHealthyMachine) {
  for (const auto& [what, finding] : by_name(healthy())) {
    EXPECT_EQ(finding.verdict, Verdict::kOk) << what << ": " << finding.text;
  }
}

TEST(Doctor, IsOfUseWithoutAGpu) {
  auto facts = healthy();
  facts.gpu.reset();
  facts.no_gpu = "cudaErrorInsufficientDriver";
  facts.cupti.permitted = false;
  facts.cupti.reason = "no hardware counters: no device";
  facts.counters_admin_only.reset();
  auto found = by_name(facts);
  EXPECT_EQ(found["gpu"].verdict, Verdict::kMissing);
  EXPECT_EQ(found["gpu"].text, "cudaErrorInsufficientDriver");
  EXPECT_EQ(found["clocks"].verdict, Verdict::kMissing);
  EXPECT_EQ(found["cpu"].verdict, Verdict::kOk);
  EXPECT_EQ(found["cupti"].verdict, Verdict::kOk);
  EXPECT_EQ(found["counters"].text, "no hardware counters: no device");
}

TEST(Doctor, SaysWhatWouldPermitCounters) {
  auto facts = healthy();
  facts.cupti.permitted = false;
  facts.cupti.reason = "no hardware counters: not permitted to this user; run as root";
  facts.counters_admin_only = true;
  const auto counters = by_name(facts)["counters"];
  EXPECT_EQ(counters.verdict, Verdict::kWarn);
  EXPECT_NE(counters.text.find("run as root; the driver lets only administrators count"), std::string::npos);
}

TEST(Doctor, WarnsOfWhatMakesTimesWrong) {
  const auto warned = [](auto change) {
    auto facts = healthy();
    change(facts);
    std::string names;
    for (const auto& [what, finding] : by_name(facts)) {
      names += finding.verdict == Verdict::kWarn ? what : "";
    }
    return names;
  };
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.build_type = "Debug"; }), "build");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.sanitize = "address"; }), "build");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->clocks.temperature_c = 90; }), "clocks");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->clocks = {}; }), "clocks");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->free_bytes /= 2; }), "memory");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->memory_bytes = facts.gpu->free_bytes = 1 << 30; }),
            "memory");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->cuda_driver = "12.8"; }), "driver");
  EXPECT_EQ(warned([](MachineFacts& facts) { facts.gpu->driver = "unavailable: no NVML"; }), "driver");
}

TEST(Doctor, SaysTheSameAsTextAndAsJson) {
  auto facts = healthy();
  facts.gpu->clocks.temperature_c = 90;
  const auto findings = diagnose(facts);
  const auto text = findings_text(findings);
  const auto list = nlohmann::json::parse(findings_json(findings)).at("findings");
  ASSERT_EQ(list.size(), findings.size());
  for (const auto& one : list) {
    EXPECT_NE(text.find(one.at("text").get<std::string>()), std::string::npos);
    EXPECT_NE(text.find(one.at("remedy").get<std::string>()), std::string::npos);
  }
  EXPECT_EQ(list[5].at("verdict"), "warn");
}

}  // namespace
}  // namespace moescope
