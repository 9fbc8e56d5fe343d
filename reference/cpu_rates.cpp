#include "reference/cpu_rates.hpp"

namespace moescope::reference {
namespace {

// One thread of an AMD EPYC (Zen 4, 2.6 GHz, 32 MiB L3), CPU time, L=1024 d=1024 N=320^2 K=512, bf16 storage.
constexpr double kMemoryBytesPerS = 16e9;  // sum over W, 210 MB
constexpr double kCacheBytesPerS = 74e9;   // sum over 6 MB of it, again and again
constexpr double kPairFlopPerS = 8.6e9;    // the staircase schedule: 2.15 GFLOP in 0.25 s
constexpr double kMatrixFlopPerS = 44e9;   // dense_masked: 429 GFLOP in 9.8 s

}  // namespace

MachineRates cpu_rates(int threads) {
  MachineRates rates;
  rates.source = "one thread of an AMD EPYC (Zen 4, 2.6 GHz), measured, times the number of threads";
  rates.memory_bytes_per_s = kMemoryBytesPerS * threads;
  rates.cache_bytes_per_s = kCacheBytesPerS * threads;
  rates.pair_flop_per_s = kPairFlopPerS * threads;
  rates.matrix_flop_per_s = kMatrixFlopPerS * threads;
  rates.items_are_matrices = false;
  // The schedules of pairs do the same FLOP; where those bind, the one that was measured fastest comes first.
  rates.candidates = {ScheduleKind::kStaircase, ScheduleKind::kExpertCentric, ScheduleKind::kTokenCentric,
                      ScheduleKind::kDenseMasked};
  return rates;
}

}  // namespace moescope::reference
