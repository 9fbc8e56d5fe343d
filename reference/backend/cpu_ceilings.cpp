#include "reference/backend/cpu_ceilings.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/workload/deterministic_math.hpp"
#include "reference/stages/matmul.hpp"

namespace moescope {
namespace {

constexpr std::int64_t kMebi = std::int64_t{1} << 20;
/// Far above the last-level cache of one process's share of today's CPUs.
constexpr std::int64_t kBufferBytes = 512 * kMebi;
/// Above the private caches, below the last-level cache (cpu_rates.cpp measured with as much).
constexpr std::int64_t kSummedBytes = 6 * kMebi;
constexpr int kCacheRounds = 16;
constexpr std::int64_t kMatrixExtent = 512;
/// As wide as AVX; the compiler splits or joins them where registers are of another width.
using Lanes = float __attribute__((vector_size(32)));
constexpr std::int64_t kLanes = 8;
/// Chains enough to hide the latency of an FMA, and few enough to stay in 16 registers.
constexpr int kFmaChains = 12;
constexpr std::int64_t kFmaSteps = 1 << 22;

struct Bench {
  std::vector<std::uint64_t> first = std::vector<std::uint64_t>(kBufferBytes / sizeof(std::uint64_t), 1);
  std::vector<std::uint64_t> second = std::vector<std::uint64_t>(kBufferBytes / sizeof(std::uint64_t), 2);
  HostTensor a = HostTensor(Dtype::kBF16, kMatrixExtent, kMatrixExtent);
  HostTensor b = HostTensor(Dtype::kBF16, kMatrixExtent, kMatrixExtent);
  std::uint64_t sink = 0;  ///< of sums, so that no loop is dropped
};

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Part `thread` of `count` elements.
std::pair<std::int64_t, std::int64_t> part(std::int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

std::uint64_t sum_of(const std::uint64_t* begin, const std::uint64_t* end) {
  std::uint64_t sum = 0;
  const std::int64_t count = end - begin;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) {
    sum += begin[i];
  }
  return sum;
}

/// Each thread its part.
void read_memory(Bench& bench) {
  std::uint64_t sum = 0;
  const std::uint64_t* const data = bench.first.data();
#pragma omp parallel reduction(+ : sum)
  {
    const auto [begin, end] = part(std::ssize(bench.first), omp_get_thread_num(), omp_get_num_threads());
    sum += sum_of(data + begin, data + end);
  }
  bench.sink += sum;
}

void write_memory(Bench& bench) {
#pragma omp parallel
  {
    const auto [begin, end] = part(std::ssize(bench.second), omp_get_thread_num(), omp_get_num_threads());
    std::memset(bench.second.data() + begin, static_cast<int>(bench.sink & 0x7f),
                static_cast<std::size_t>(end - begin) * sizeof(std::uint64_t));
  }
}

void copy_memory(Bench& bench) {
#pragma omp parallel
  {
    const auto [begin, end] = part(std::ssize(bench.first), omp_get_thread_num(), omp_get_num_threads());
    std::memcpy(bench.second.data() + begin, bench.first.data() + begin,
                static_cast<std::size_t>(end - begin) * sizeof(std::uint64_t));
  }
}

/// Every thread all of the range.
void read_cache(Bench& bench) {
  std::uint64_t sum = 0;
#pragma omp parallel reduction(+ : sum)
  for (int round = 0; round < kCacheRounds; ++round) {
    sum += sum_of(bench.first.data(), bench.first.data() + kSummedBytes / sizeof(std::uint64_t));
  }
  bench.sink += sum;
}

void multiply_add(Bench& bench) {
  double sum = 0;
#pragma omp parallel reduction(+ : sum)
  {
    Lanes chains[kFmaChains] = {};
    const float slope = 1 - 1e-3F * static_cast<float>(omp_get_thread_num() + 1);
    const Lanes factor = Lanes{} + slope;
    for (std::int64_t step = 0; step < kFmaSteps; ++step) {
#pragma GCC unroll 12
      for (int c = 0; c < kFmaChains; ++c) {
        chains[c] = chains[c] * factor + factor;
      }
    }
    for (const Lanes& chain : chains) {
      sum += static_cast<double>(chain[0]);
    }
  }
  bench.sink += sum > 0 ? 1 : 0;
}

}  // namespace

CeilingProbes make_cpu_ceiling_probes() {
  if (const auto have = available_host_memory_bytes(); have < 3 * std::uint64_t{kBufferBytes}) {
    throw OutOfMemory("measuring ceilings", 3 * std::uint64_t{kBufferBytes}, have);
  }
  const auto bench = std::make_shared<Bench>();
  fill_normal(bench->a, 1, 1, RandomStream::kHiddenStates);
  fill_normal(bench->b, 1, 2, RandomStream::kHiddenStates);
  const int threads = omp_get_max_threads();
  CeilingProbes result;
  const auto add = [&](std::string_view metric, std::string method, double work, void (*run)(Bench&)) {
    result.probes.push_back({std::string(metric), std::move(method), work,
                             [bench, run] { return seconds_of([&] { run(*bench); }); }});
  };
  const auto memory = static_cast<double>(kBufferBytes);
  const std::int64_t mebibytes = kBufferBytes / kMebi;
  add(ceiling::kHbmCopy,
      fmt::format("memcpy of {} MiB by {} threads; bytes read plus bytes written", mebibytes, threads),
      2 * memory, copy_memory);
  add(ceiling::kHbmRead, fmt::format("sum over {} MiB by {} threads", mebibytes, threads), memory,
      read_memory);
  add(ceiling::kHbmWrite, fmt::format("memset of {} MiB by {} threads", mebibytes, threads), memory,
      write_memory);
  add(ceiling::kL2Read,
      fmt::format("sum over the same {} MiB by each of {} threads, again and again", kSummedBytes / kMebi,
                  threads),
      static_cast<double>(kSummedBytes) * kCacheRounds * threads, read_cache);
  add(ceiling::kBf16Matrix,
      fmt::format("the reference's product of two {0} x {0} bf16 matrices by {1} threads", kMatrixExtent,
                  threads),
      2.0 * kMatrixExtent * kMatrixExtent * kMatrixExtent, [](Bench& b) {
        const HostTensor product = reference::matmul_nt(b.a, b.b);
        b.sink += static_cast<std::uint64_t>(product.rows());
      });
  add(ceiling::kFp32, fmt::format("chains of fp32 multiply-adds in registers by {} threads", threads),
      2.0 * kLanes * kFmaChains * kFmaSteps * threads, multiply_add);
  return result;
}

}  // namespace moescope
