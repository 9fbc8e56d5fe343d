// What was counted on every recorded GPU of work whose bytes and FLOP are known (counter_truth.jsonl, made by
// `moescope counters --check`) is right within the project's bounds. Needs no GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "core/results/result.hpp"
#include "tests/support/recorded_rows.hpp"

namespace moescope {
namespace {

struct Pair {
  double known = 0;
  double counted = -1;
  bool at_most = false;
};

/// (case, metric) -> known and counted.
std::map<std::pair<std::string, std::string>, Pair> recorded(const std::filesystem::path& file) {
  const auto runs = read_rows(file);
  EXPECT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs.front().header.git_revision.size(), 40U);
  EXPECT_FALSE(runs.front().header.git_dirty);
  std::map<std::pair<std::string, std::string>, Pair> pairs;
  for (const auto& row : runs.front().rows) {
    EXPECT_EQ(row.system, "known_work");
    EXPECT_NE(row.status, Status::kFailed) << row.workload << ' ' << row.metric << ": " << row.reason;
    if (row.source == Source::kAnalytic) {
      auto& pair = pairs[{row.workload, row.metric}];
      pair.known = row.value.value();
      pair.at_most = row.reason == "at most";
    }
  }
  for (const auto& row : runs.front().rows) {
    const auto pair = pairs.find({row.workload, row.metric});
    if (row.source == Source::kMeasured && pair != pairs.end()) {
      pair->second.counted = row.value.value();
    }
  }
  return pairs;
}

using RecordedCounters = test::RecordedGpu;
INSTANTIATE_TEST_SUITE_P(Gpus, RecordedCounters, testing::ValuesIn(test::recorded_gpu_names()),
                         [](const auto& gpu) { return gpu.param; });

/// The project's bounds (not the tolerances that the run was judged by).
double bound_of(const std::string& metric) {
  if (metric.rfind("hbm_", 0) == 0) {
    return 0.02;
  }
  return metric == "tensor_flop" ? 0.01 : 0.05;
}

TEST_P(RecordedCounters, AreWithinTheirBoundsOfWhatTheWorkMustDo) {
  std::map<std::string, int> checked;
  for (const auto& [name, pair] : recorded(file("counter_truth.jsonl"))) {
    const auto& [work, metric] = name;
    if (pair.at_most) {
      EXPECT_LE(pair.counted, pair.known) << work << ' ' << metric;
    } else {
      EXPECT_LE(std::abs(pair.counted / pair.known - 1), bound_of(metric)) << work << ' ' << metric;
      ++checked[metric];
    }
  }
  for (const char* metric : {"hbm_read_bytes", "hbm_write_bytes", "l2_read_bytes", "l2_write_bytes",
                             "shared_load_bytes", "tensor_flop"}) {
    EXPECT_GE(checked[metric], 3) << metric;
  }
  for (const char* metric :
       {"l2_reduction_bytes", "l2_atomic_bytes", "tma_read_bytes", "shared_store_bytes",
        "shared_ldgsts_bytes", "shared_gmma_bytes", "shared_bank_conflicts", "cuda_core_flop", "half_flop"}) {
    EXPECT_GE(checked[metric], 1) << metric;
  }
}

TEST_P(RecordedCounters, CountAKernelInAGraphAsOneLaunchedPlainly) {
  const auto pairs = recorded(file("counter_truth.jsonl"));
  for (const char* metric : {"hbm_read_bytes", "hbm_write_bytes", "shared_pipe_bytes", "tensor_flop"}) {
    EXPECT_NEAR(pairs.at({"graph_launch", metric}).counted / pairs.at({"three_kernels", metric}).counted, 1,
                0.01)
        << metric;
  }
}

TEST_P(RecordedCounters, CoverEveryKindOfWork) {
  std::set<std::string> works;
  for (const auto& [name, pair] : recorded(file("counter_truth.jsonl"))) {
    works.insert(name.first);
  }
  for (const char* work :
       {"hbm_read",       "hbm_write",     "hbm_copy",    "gather_rows",   "l2_read",          "l2_reduction",
        "l2_atomic",      "copy_async",    "shared_read", "shared_write",  "shared_conflicts", "mma_sync",
        "cublas_product", "fma_fp32",      "fma_bf16",    "three_kernels", "graph_launch",     "tma_load",
        "tma_store",      "tma_reduction", "wgmma"}) {
    EXPECT_TRUE(works.contains(work)) << work;
  }
}

}  // namespace
}  // namespace moescope
