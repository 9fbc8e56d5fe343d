#include "kernels/probes/ceilings.hpp"

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>

#include "kernels/probes/memory_stream.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvml.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr std::int64_t kMebi = std::int64_t{1} << 20;
/// One pass over this takes about 0.7 ms at 3 TB/s: event and launch times of a few microseconds vanish.
constexpr std::int64_t kMostBufferBytes = 2048 * kMebi;
/// Smaller buffers would be served by the L2 cache in part.
constexpr std::int64_t kLeastBufferPerL2 = 8;
/// Part of the L2 cache that stays in it though each half of it may keep a copy of its own.
constexpr std::int64_t kL2Part = 4;
/// Bytes that a pass over the L2 range moves in all; sets the number of rounds.
constexpr std::int64_t kL2PassBytes = 4096 * kMebi;
constexpr std::int64_t kMatrixExtent = 8192;
constexpr int kSharedIterations = 4096;
constexpr int kFmaIterations = 2048;

/// What the probes share.
struct Bench {
  Bench(const DeviceInfo& device, std::int64_t buffer)
      : info(device), nvml(device.pci_bus_id), buffer_bytes(buffer), first(buffer), second(buffer) {
    launch_fill_random_bf16(first.get(), buffer / 2, 1, stream.get());
    launch_fill_random_bf16(second.get(), buffer / 2, 2, stream.get());
    stream.synchronize();
  }

  /// Seconds of what `enqueue` puts on the stream, the second time.
  template <class Enqueue>
  double timed(const Enqueue& enqueue) {
    enqueue();
    start.record(stream.get());
    enqueue();
    stop.record(stream.get());
    stream.synchronize();
    return stop.seconds_since(start);
  }

  DeviceInfo info;
  Nvml nvml;
  Stream stream;
  Event start;
  Event stop;
  CublasLt blas;
  std::int64_t buffer_bytes;
  DeviceBuffer<std::byte> first;
  DeviceBuffer<std::byte> second;
};

std::int64_t choose_buffer_bytes(const DeviceInfo& info) {
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  const auto most = static_cast<std::int64_t>(free_bytes) / 8 / kMebi * kMebi;
  const std::int64_t least = std::max(kLeastBufferPerL2 * info.l2_bytes, std::int64_t{64} * kMebi);
  if (most < least) {
    throw OutOfMemory("measuring ceilings", static_cast<std::uint64_t>(8 * least), free_bytes);
  }
  return std::min(most, std::max(least, kMostBufferBytes));
}

std::string mebibytes(std::int64_t bytes) { return fmt::format("{} MiB", bytes / kMebi); }

}  // namespace

CeilingProbes make_cuda_ceiling_probes() {
  const DeviceInfo info = device_info();
  const auto bench = std::make_shared<Bench>(info, choose_buffer_bytes(info));
  CeilingProbes result;
  result.clocks = [bench] { return bench->nvml.sample(); };
  const auto add = [&](std::string_view metric, std::string method, std::int64_t work, auto enqueue) {
    result.probes.push_back({std::string(metric), std::move(method), static_cast<double>(work),
                             [bench, enqueue] { return bench->timed([&] { enqueue(*bench); }); }});
  };
  const std::int64_t buffer = bench->buffer_bytes;
  add(ceiling::kHbmCopy,
      fmt::format("kernel copies {} to another, 16 bytes per access; bytes read plus bytes written",
                  mebibytes(buffer)),
      2 * buffer,
      [](Bench& b) { launch_memory_copy(b.second.get(), b.first.get(), b.buffer_bytes, b.stream.get()); });
  add(ceiling::kHbmRead, fmt::format("kernel reads {} once, 16 bytes per load", mebibytes(buffer)), buffer,
      [](Bench& b) { launch_memory_read(b.first.get(), b.buffer_bytes, b.stream.get()); });
  add(ceiling::kHbmWrite, fmt::format("kernel writes {} once, 16 bytes per store", mebibytes(buffer)), buffer,
      [](Bench& b) { launch_memory_write(b.second.get(), b.buffer_bytes, b.stream.get()); });

  // Reads of L2 by loads and by the bulk copy engine. Of a range smaller than a quarter several
  // multiprocessors ask for one line at a time, which L2 then reads once for all: counted on an H200, an
  // eighth of L2 is read 0.90 times as often as it is received, 512 KiB 0.39 times (and received at 19 TB/s),
  // a quarter 0.99 times.
  const auto sms = static_cast<int>(info.num_sms);
  for (const std::int64_t part : {kL2Part, kL2Part / 2}) {
    const std::int64_t range = std::max(info.l2_bytes / part / kMebi * kMebi, kMebi);
    const int rounds = static_cast<int>(std::max<std::int64_t>(kL2PassBytes / range, 2));
    add(ceiling::kL2Read,
        fmt::format("kernel reads {} of the {} of L2 {} times, 16 bytes per load past L1", mebibytes(range),
                    mebibytes(info.l2_bytes), rounds),
        rounds * range,
        [range, rounds](Bench& b) { launch_memory_read(b.first.get(), range, b.stream.get(), rounds); });
    if (info.compute_capability >= 90) {
      const std::int64_t bytes = bulk_read_bytes(sms, rounds * range);
      add(ceiling::kL2Read,
          fmt::format("kernel reads {} of the {} of L2 {} times, bulk copies of 16 KiB to shared memory",
                      mebibytes(range), mebibytes(info.l2_bytes), rounds),
          bytes, [range, bytes, sms](Bench& b) {
            launch_bulk_read(b.first.get(), range, bytes, sms, b.stream.get());
          });
    }
  }
  const std::int64_t range = std::max(info.l2_bytes / kL2Part / kMebi * kMebi, kMebi);
  const int rounds = static_cast<int>(std::max<std::int64_t>(kL2PassBytes / range, 2));
  add(ceiling::kL2Reduction,
      fmt::format("kernel adds to every fp32 of {} {} times by reductions{}; bytes of operands",
                  mebibytes(range), rounds, info.compute_capability >= 90 ? " of 16 bytes" : " of 4 bytes"),
      rounds * range, [range, rounds](Bench& b) {
        launch_memory_reduce(std::bit_cast<float*>(b.second.get()), range, b.stream.get(), rounds);
      });

  add(ceiling::kSharedRead,
      "every warp of a full device reads shared memory, 16 bytes per thread, no bank conflicts",
      shared_read_bytes(sms) * kSharedIterations,
      [sms](Bench& b) { launch_shared_read(sms, kSharedIterations, b.stream.get()); });

  Gemm gemm;
  // The largest power of two whose operand fits half a buffer.
  gemm.m = gemm.n = gemm.k = std::min(
      kMatrixExtent, std::int64_t{1} << ((std::bit_width(static_cast<std::uint64_t>(buffer / 4)) - 1) / 2));
  gemm.in = gemm.out = Dtype::kBF16;
  // Random operands: zeros draw less power and run faster than data does. The output is a buffer of its own.
  gemm.a = bench->first.get();
  gemm.b = bench->first.get() + buffer / 2;
  gemm.d = bench->second.get();
  add(ceiling::kBf16Matrix,
      fmt::format("cuBLASLt product of two {0} x {0} bf16 matrices of random numbers, fp32 accumulation",
                  gemm.m),
      2 * gemm.m * gemm.n * gemm.k, [gemm](Bench& b) { b.blas.run(gemm, b.stream.get()); });
  add(ceiling::kFp32, "independent chains of fp32 multiply-adds in registers on a full device",
      fma_flop(sms) * kFmaIterations, [sms](Bench& b) { launch_fma(sms, kFmaIterations, b.stream.get()); });
  return result;
}

}  // namespace moescope
