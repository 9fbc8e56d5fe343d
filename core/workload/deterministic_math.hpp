#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/tensor.hpp"
#include "core/workload/philox.hpp"

/// Random numbers and elementary functions whose every bit is the same on every machine. They use + - * / and
/// sqrt (exactly rounded by IEEE 754) alone: log, exp and pow of the C library differ in the last bit between
/// versions. The implementation is compiled without contraction into fused multiply-adds
/// (core/CMakeLists.txt).
namespace moescope {

/// Natural logarithm, within 2 ulp; log(0) = -infinity, NaN for x < 0 and NaN.
double deterministic_log(double x);
/// Exponential, within 2 ulp where the result is normal; overflows to infinity, underflows to 0.
double deterministic_exp(double x);
/// Inverse of the standard normal distribution function for p in (0, 1), relative error below 1e-15 or so:
/// algorithm AS 241, PPND16 (Wichura 1988, Applied Statistics 37, 477-484). Infinite at 0 and 1, NaN outside.
double normal_quantile(double p);

/// What a random number of one seed is used for; the stream argument of Philox. Values are part of what makes
/// workloads reproducible: never renumber.
enum class RandomStream : std::uint32_t {
  kHiddenStates = 1,
  kRouterRow = 2,
  kRouterCol = 3,
  kRowRanks = 4,
  kColRanks = 5,
  kHotTokens = 6,
  kClusterCentres = 7,
  kClusterOfToken = 8,
  kUniformIds = 9,
  kUniformScores = 10,
  kExpertIn = 11,
  kExpertOut = 12,
  kSharedGate = 13,
  kSharedUp = 14,
  kSharedDown = 15,
  kOutputGradient = 20,
  kExperimentPoints = 30,
};

/// N(0, 1) numbers first, first + 1, ... of a stream: number i is the normal quantile of (w + 1/2) 2^-32
/// where w is word i mod 4 of Philox block i / 4. So they reach +-6.3.
void standard_normals(std::uint64_t seed, RandomStream stream, std::uint64_t first, std::span<double> out);

/// Fills the tensor with N(0, standard_deviation^2), rounded to its storage; element i (row-major) from
/// number i. In parallel; the result does not depend on the number of threads.
void fill_normal(HostTensor& tensor, double standard_deviation, std::uint64_t seed, RandomStream stream);

/// A uniformly random order of 0..count-1 (Fisher-Yates).
std::vector<std::int32_t> random_permutation(std::int64_t count, std::uint64_t seed, RandomStream stream);

}  // namespace moescope
