#include "reference/backend/cpu_rates.hpp"

#include <string_view>

namespace moescope::reference {
namespace {

// One thread of an AMD EPYC (Zen 4, 2.6 GHz, 32 MiB L3), CPU time, L=1024 d=1024 N=320^2 K=512, bf16 storage.
constexpr double kMemoryBytesPerS = 16e9;  // sum over W, 210 MB
constexpr double kCacheBytesPerS = 74e9;   // sum over 6 MB of it, again and again
constexpr double kPairFlopPerS = 8.6e9;    // the staircase schedule: 2.15 GFLOP in 0.25 s
constexpr double kCacheBytes = 32 << 20;
constexpr double kMatrixFlopPerS = 44e9;  // dense_masked: 429 GFLOP in 9.8 s

}  // namespace

MachineRates cpu_rates(int threads) {
  MachineRates rates;
  rates.source = "one thread of an AMD EPYC (Zen 4, 2.6 GHz), measured, times the number of threads";
  rates.size = {.cache_bytes = kCacheBytes};
  // The schedules of pairs do the same FLOP; where those bind, the one that was measured fastest comes first.
  for (const std::string_view name :
       {"staircase", "staircase:rows", "expert_centric", "token_centric", "dense_masked"}) {
    const ScheduleOptions schedule = parse_schedule(name);
    const bool matrix = schedule.kind == ScheduleKind::kDenseMasked;
    rates.candidates.push_back({.schedule = schedule,
                                .memory_bytes_per_s = kMemoryBytesPerS * threads,
                                .cache_bytes_per_s = kCacheBytesPerS * threads,
                                .flop_per_s = (matrix ? kMatrixFlopPerS : kPairFlopPerS) * threads,
                                .executes_masked = matrix});
  }
  return rates;
}

}  // namespace moescope::reference
