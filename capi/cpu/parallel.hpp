#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace moescope::capi {

/// Threads that an operation may use: what the caller asked for, or OpenMP's number.
inline int resolved_threads(std::int32_t asked) {
  constexpr int kMost = 256;
  return std::clamp(asked > 0 ? static_cast<int>(asked) : omp_get_max_threads(), 1, kMost);
}

/// Calls body(thread, i) for every i of [0, count), each once. Who computes what does not change results,
/// because every output has one i that writes it. The first exception of a thread is thrown again when all
/// are done. Little work
/// (`cost` operations an i) stays on this thread.
template <class Body>
void for_each(std::int64_t count, int threads, double cost, const Body& body) {
  constexpr double kWorthAThread = 2e4;  // operations: some microseconds, what waking a thread takes
  const auto useful =
      static_cast<std::int64_t>(std::min(static_cast<double>(count) * cost / kWorthAThread, 1024.0));
  const int team = static_cast<int>(std::clamp<std::int64_t>(std::min(useful, count), 1, threads));
  if (team == 1) {
    for (std::int64_t i = 0; i < count; ++i) {
      body(0, i);
    }
    return;
  }
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(team)
  for (std::int64_t i = 0; i < count; ++i) {
    try {
      body(omp_get_thread_num(), i);
    } catch (...) {
#pragma omp critical(moescope_capi_failure)
      if (!failure) {
        failure = std::current_exception();
      }
    }
  }
  if (failure) {
    std::rethrow_exception(failure);
  }
}

}  // namespace moescope::capi
