#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "profiler/counters/cupti_counters.hpp"

/// What this machine and this build can measure, judged from facts that a caller gathered.
namespace moescope {

enum class Verdict : std::uint8_t { kOk, kWarn, kMissing };
std::string_view to_string(Verdict verdict);

/// A GPU as the driver tells it.
struct GpuFacts {
  std::string name;
  std::string driver;        ///< kernel driver, or "unavailable: <reason>"
  std::string cuda_driver;   ///< newest CUDA the driver supports, "13.0"
  std::string cuda_runtime;  ///< CUDA this program was built with, "13.0"
  std::int64_t compute_capability = 0;
  std::int64_t num_sms = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t free_bytes = 0;
  ClockSample clocks;
};

struct MachineFacts {
  std::string version;
  std::string build_type;
  std::string sanitize;
  std::string git_revision;
  bool git_dirty = false;
  std::string cpu;
  int cpu_threads = 0;
  std::optional<GpuFacts> gpu;
  std::string no_gpu;  ///< why there is none; empty when there is
  CuptiStatus cupti;
  /// The driver lets only administrators count (/proc/driver/nvidia/params); empty when that cannot be read.
  std::optional<bool> counters_admin_only;
};

/// One line of the report.
struct Finding {
  std::string what;  ///< "gpu", "driver", "counters", ...
  Verdict verdict = Verdict::kOk;
  std::string text;    ///< what was found
  std::string remedy;  ///< what would help; empty when nothing is needed
};

/// In a fixed order, every line always there.
std::vector<Finding> diagnose(const MachineFacts& facts);

std::string findings_text(const std::vector<Finding>& findings);
/// {"findings": [{"what", "verdict", "text", "remedy"}, ...]}
std::string findings_json(const std::vector<Finding>& findings);

}  // namespace moescope
