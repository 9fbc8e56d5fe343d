// Properties of the claims table over the rows that come with the project.
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <random>
#include <set>

#include "profiler/claims/claims.hpp"
#include "tests/support/recorded_rows.hpp"

namespace moescope {
namespace {

/// Which of the recorded files, by index.
using Files = std::set<std::size_t>;

/// Every recorded file, read once.
class Recorded {
 public:
  static const Recorded& get() {
    static const Recorded recorded;
    return recorded;
  }

  Files measured() const { return measured_; }
  Files modelled() const { return modelled_; }

  std::vector<DeviceClaims> judge(const std::vector<std::size_t>& files) const {
    std::vector<Recording> recordings;
    for (const std::size_t file : files) {
      recordings.insert(recordings.end(), recordings_[file].begin(), recordings_[file].end());
    }
    return judge_claims(recordings);
  }
  std::vector<DeviceClaims> judge(const Files& files) const {
    return judge(std::vector<std::size_t>(files.begin(), files.end()));
  }

 private:
  Recorded() {
    std::vector<std::string> machines = test::recorded_gpu_names();
    machines.insert(machines.end(), {"cpu", "modelled"});
    for (const std::string& machine : machines) {
      for (const std::filesystem::path& path : test::recorded_rows(machine)) {
        Files& kind = machine == "modelled" ? modelled_ : measured_;
        kind.insert(files_.size());
        files_.push_back({path.string(), read_rows(path)});
        recordings_.push_back(recordings_of(files_.back()));
      }
    }
  }

  std::deque<RecordedFile> files_;
  std::deque<std::vector<Recording>> recordings_;
  Files measured_;
  Files modelled_;
};

Files some_of(const Files& files, double share, std::mt19937& random) {
  Files some;
  std::bernoulli_distribution in(share);
  for (const std::size_t file : files) {
    if (in(random)) {
      some.insert(file);
    }
  }
  return some;
}

/// The worst that a line says.
int worst_rank(const ClaimResult& claim) { return std::max(rank(claim.verdict), rank(claim.worst_verdict)); }

/// Nothing that `few` says is gone in `many`.
void expect_no_less(const std::vector<DeviceClaims>& few, const std::vector<DeviceClaims>& many) {
  for (const DeviceClaims& device : few) {
    const auto same = std::ranges::find(many, device.device, &DeviceClaims::device);
    for (std::size_t c = 0; c < device.claims.size(); ++c) {
      const ClaimResult& before = device.claims[c];
      if (!is_reached(before.verdict)) {
        continue;
      }
      ASSERT_NE(same, many.end()) << device.device;
      const ClaimResult& after = same->claims[c];
      EXPECT_TRUE(is_reached(after.verdict)) << after.claim << ": " << to_string(after.verdict);
      EXPECT_GE(worst_rank(after), worst_rank(before)) << after.claim << ": " << after.why;
      for (const std::string& name : before.used) {
        EXPECT_TRUE(std::ranges::count(after.used, name) + std::ranges::count(after.passed_over, name) > 0)
            << after.claim << " says nothing of " << name;
      }
    }
  }
}

TEST(RecordedClaims, MoreFilesNeverSayLess) {
  const Recorded& recorded = Recorded::get();
  std::mt19937 random(20261130);
  for (int round = 0; round < 60; ++round) {
    const Files many = some_of(recorded.measured(), round % 2 == 0 ? 0.8 : 0.3, random);
    const Files few = some_of(many, 0.5, random);
    expect_no_less(recorded.judge(few), recorded.judge(many));
  }
}

TEST(RecordedClaims, NoFileAloneSaysWhatAllOfThemHide) {
  const Recorded& recorded = Recorded::get();
  const auto all = recorded.judge(recorded.measured());
  for (const std::size_t file : recorded.measured()) {
    expect_no_less(recorded.judge(Files{file}), all);
  }
}

TEST(RecordedClaims, ModelledFilesChangeNothing) {
  const Recorded& recorded = Recorded::get();
  ASSERT_FALSE(recorded.modelled().empty());
  std::mt19937 random(1);
  for (int round = 0; round < 8; ++round) {
    Files files = some_of(recorded.measured(), 0.5, random);
    const std::string before = claims_text(recorded.judge(files));
    files.merge(recorded.modelled());
    EXPECT_EQ(claims_text(recorded.judge(files)), before);
  }
  const auto devices = recorded.judge(recorded.modelled());
  for (const ClaimResult& claim : devices.at(0).claims) {
    EXPECT_EQ(claim.verdict, ClaimVerdict::kNoRows) << claim.claim;
  }
}

TEST(RecordedClaims, TheOrderOfFilesChangesNothing) {
  const Recorded& recorded = Recorded::get();
  const Files all = recorded.measured();
  std::vector<std::size_t> order(all.begin(), all.end());
  const std::string before = claims_markdown(recorded.judge(order));
  std::mt19937 random(2);
  for (int round = 0; round < 4; ++round) {
    std::ranges::shuffle(order, random);
    EXPECT_EQ(claims_markdown(recorded.judge(order)), before);
  }
}

TEST(RecordedClaims, EveryLineHasRowsOnTheH100) {
  const Recorded& recorded = Recorded::get();
  const auto devices = recorded.judge(recorded.measured());
  ASSERT_GE(devices.size(), 2U);
  EXPECT_NE(devices[0].device.find("H100"), std::string::npos) << "most verdicts first";
  EXPECT_EQ(devices[0].claims.size(), 19U);
  for (const ClaimResult& claim : devices[0].claims) {
    EXPECT_TRUE(is_reached(claim.verdict)) << claim.claim << ": " << claim.why;
  }
  EXPECT_EQ(claims_text(devices).find(to_string(ClaimVerdict::kNoRows)), std::string::npos);
}

}  // namespace
}  // namespace moescope
