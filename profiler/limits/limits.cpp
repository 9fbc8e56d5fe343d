#include "profiler/limits/limits.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moescope {
namespace {

/// Seconds that an amount takes at a rate.
std::optional<double> time_at(std::optional<double> amount, std::optional<double> rate) {
  return amount && rate && *rate > 0 ? std::optional(*amount / *rate) : std::nullopt;
}

}  // namespace

std::optional<double> l2_reads(const StageMetrics& metrics) {
  const auto slices = metrics.find("l2_slice_read_bytes");
  return slices ? slices : metrics.find("l2_read_bytes");
}

std::vector<Limit> stage_limits(double time_s, const StageMetrics& metrics, const DeviceCeilings& ceilings) {
  std::vector<Limit> limits;
  const auto add = [&](std::string_view resource, std::optional<double> busy_s) {
    if (busy_s && time_s > 0) {
      limits.push_back({resource, *busy_s / time_s});
    }
  };
  add("hbm", time_at(metrics.sum({"hbm_read_bytes", "hbm_write_bytes"}), ceilings.hbm_bytes_per_s()));
  const auto reads = l2_reads(metrics);
  const auto writes = metrics.find("l2_write_bytes");
  const auto l2 = time_at(reads && writes ? std::optional(*reads + *writes) : std::nullopt,
                          ceilings.rate(ceiling::kL2Read));
  const auto added = metrics.sum({"l2_reduction_bytes", "l2_atomic_bytes"});
  const auto reductions = added == 0.0 ? added : time_at(added, ceilings.rate(ceiling::kL2Reduction));
  add("l2", l2 && reductions ? std::optional(*l2 + *reductions) : std::nullopt);
  const auto pipe = metrics.find("shared_pipe_bytes");
  add("shared", time_at(pipe ? pipe : metrics.find("shared_bytes"), ceilings.rate(ceiling::kSharedRead)));
  add("tensor", time_at(metrics.find("tensor_flop"), ceilings.rate(ceiling::kBf16Matrix)));
  add("fp32", time_at(metrics.find("cuda_core_flop"), ceilings.rate(ceiling::kFp32)));
  if (const auto issue = metrics.find("issue_utilisation")) {
    limits.push_back({"issue", *issue});
  }
  std::ranges::stable_sort(limits, std::greater<>(), &Limit::fraction);
  return limits;
}

std::string bound_text(const std::vector<Limit>& limits) {
  if (limits.empty()) {
    return "unknown";
  }
  const Limit& nearest = limits.front();
  const auto text = fmt::format("{} {:.0f} %", nearest.resource, 100 * nearest.fraction);
  return nearest.fraction >= kBoundFraction ? text : fmt::format("latency ({})", text);
}

}  // namespace moescope
