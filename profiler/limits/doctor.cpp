#include "profiler/limits/doctor.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <utility>

#include "profiler/text/format.hpp"

namespace moescope {
namespace {

/// Above this a data-centre GPU is close to slowing down (limits of 87 C, nvidia-smi -q -d TEMPERATURE).
constexpr double kWarmC = 83;
/// The paper's Table A layer in bf16 with activations needs less than this at 16384 tokens.
constexpr double kLeastFreeBytes = 8.0 * 1024 * 1024 * 1024;
/// Less of the memory than this free: somebody else is using the GPU.
constexpr double kOthersShare = 0.9;

Finding build(const MachineFacts& facts) {
  Finding finding{"build",
                  Verdict::kOk,
                  fmt::format("moescope {} ({}{}), {}", facts.version, facts.git_revision.substr(0, 12),
                              facts.git_dirty ? ", with changes" : "", facts.build_type),
                  {}};
  if (!facts.sanitize.empty() || facts.build_type == "Debug") {
    finding.verdict = Verdict::kWarn;
    finding.text += facts.sanitize.empty() ? "" : fmt::format(", sanitizers {}", facts.sanitize);
    finding.remedy = "times of this build say little; build Release without sanitizers";
  }
  return finding;
}

Finding gpu(const MachineFacts& facts) {
  if (!facts.gpu.has_value()) {
    return {"gpu", Verdict::kMissing, facts.no_gpu, "--backend cpu runs everything, without a GPU's times"};
  }
  return {
      "gpu",
      Verdict::kOk,
      fmt::format("{}, compute capability {}.{}, {} multiprocessors", facts.gpu->name,
                  facts.gpu->compute_capability / 10, facts.gpu->compute_capability % 10, facts.gpu->num_sms),
      {}};
}

Finding driver(const GpuFacts& facts) {
  Finding finding{
      "driver", Verdict::kOk, fmt::format("{}, supports CUDA {}", facts.driver, facts.cuda_driver), {}};
  if (std::atof(facts.cuda_driver.c_str()) < std::atof(facts.cuda_runtime.c_str())) {
    finding.verdict = Verdict::kWarn;
    finding.remedy =
        fmt::format("this program was built with CUDA {}: update the driver", facts.cuda_runtime);
  } else if (facts.driver.rfind("unavailable", 0) == 0) {
    finding.verdict = Verdict::kWarn;
    finding.remedy = "without NVML there are no clocks: throttled samples cannot be told";
  }
  return finding;
}

Finding memory(const GpuFacts& facts) {
  const auto free_bytes = static_cast<double>(facts.free_bytes);
  const auto all_bytes = static_cast<double>(facts.memory_bytes);
  Finding finding{"memory",
                  Verdict::kOk,
                  fmt::format("{} of {} free", format_bytes(free_bytes), format_bytes(all_bytes)),
                  {}};
  if (free_bytes < kOthersShare * all_bytes) {
    finding.verdict = Verdict::kWarn;
    finding.remedy = "another program uses this GPU; times taken beside it are not its own";
  } else if (free_bytes < kLeastFreeBytes) {
    finding.verdict = Verdict::kWarn;
    finding.remedy = "the large presets will not fit; a smaller --preset will";
  }
  return finding;
}

Finding clocks(const GpuFacts& facts) {
  const ClockSample& now = facts.clocks;
  if (now.sm_clock_hz < 0) {
    return {"clocks", Verdict::kWarn, "cannot be read",
            "NVML (libnvidia-ml.so.1) gives them; without it a throttled sample cannot be told"};
  }
  Finding finding{"clocks",
                  Verdict::kOk,
                  fmt::format("SM {:.0f} of at most {:.0f} MHz, {:.0f} C", now.sm_clock_hz / 1e6,
                              now.sm_clock_max_hz / 1e6, now.temperature_c),
                  {}};
  if (now.temperature_c > kWarmC) {
    finding.verdict = Verdict::kWarn;
    finding.remedy = "let it cool: samples below 75 % of the largest clock are discarded";
  }
  return finding;
}

Finding cupti(const MachineFacts& facts) {
  if (!facts.cupti.host) {
    return {"cupti", Verdict::kWarn, facts.cupti.reason, "times and analytic bytes do not need it"};
  }
  return {"cupti", Verdict::kOk, fmt::format("{}, {}", facts.cupti.version, facts.cupti.path), {}};
}

Finding counters(const MachineFacts& facts) {
  std::string driver_says;
  if (facts.counters_admin_only.has_value()) {
    driver_says = *facts.counters_admin_only ? "; the driver lets only administrators count"
                                             : "; the driver lets every user count";
  }
  if (facts.cupti.permitted) {
    return {"counters", Verdict::kOk, "permitted" + driver_says, {}};
  }
  return {"counters", Verdict::kWarn, facts.cupti.reason + driver_says,
          "times, analytic and modelled bytes do not need them"};
}

}  // namespace

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarn:
      return "warn";
    case Verdict::kMissing:
      return "missing";
  }
  return "?";
}

std::vector<Finding> diagnose(const MachineFacts& facts) {
  std::vector<Finding> findings = {
      build(facts),
      {"cpu", Verdict::kOk, fmt::format("{}, {} threads", facts.cpu, facts.cpu_threads), {}},
      gpu(facts)};
  for (const auto& [what, judge] :
       {std::pair{"driver", &driver}, std::pair{"memory", &memory}, std::pair{"clocks", &clocks}}) {
    findings.push_back(facts.gpu.has_value() ? judge(*facts.gpu)
                                             : Finding{what, Verdict::kMissing, "no GPU", {}});
  }
  findings.push_back(cupti(facts));
  findings.push_back(counters(facts));
  return findings;
}

std::string findings_text(const std::vector<Finding>& findings) {
  std::string text;
  for (const auto& finding : findings) {
    text += fmt::format("{:<9} {:<8} {}\n", finding.what, to_string(finding.verdict), finding.text);
    if (!finding.remedy.empty()) {
      text += fmt::format("{:<18} -> {}\n", "", finding.remedy);
    }
  }
  return text;
}

std::string findings_json(const std::vector<Finding>& findings) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const auto& finding : findings) {
    list.push_back({{"what", finding.what},
                    {"verdict", to_string(finding.verdict)},
                    {"text", finding.text},
                    {"remedy", finding.remedy}});
  }
  return nlohmann::ordered_json{{"findings", list}}.dump(1, ' ', false,
                                                         nlohmann::ordered_json::error_handler_t::replace) +
         '\n';
}

}  // namespace moescope
