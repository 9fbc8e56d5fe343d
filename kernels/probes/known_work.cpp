#include "kernels/probes/known_work.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <utility>

#include "kernels/probes/instruction_stream.hpp"
#include "kernels/probes/memory_stream.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_graph.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

namespace moescope {
namespace {

using namespace cuda;

constexpr std::int64_t kMebi = std::int64_t{1} << 20;
/// The dirty part of L2 that a stream of writes leaves behind is 1 % of this or less.
constexpr std::int64_t kMostBufferBytes = 4096 * kMebi;
constexpr std::int64_t kLeastBufferPerL2 = 16;
/// Part of L2 that stays in it though each half of it may keep a copy of its own.
constexpr std::int64_t kL2Part = 4;
constexpr int kRounds = 32;
constexpr int kIterations = 2048;
constexpr std::int64_t kMatrixExtent = 4096;
constexpr std::int64_t kGatherPart = 8;  ///< one row of these is gathered

constexpr double kHbmTolerance = 0.02;
constexpr double kL2Tolerance = 0.05;
constexpr double kSharedTolerance = 0.05;
constexpr double kFlopTolerance = 0.01;
/// Of a case's bytes: what may reach a level that they are not meant for.
constexpr double kLeak = 0.02;

std::int64_t choose_buffer_bytes(const DeviceInfo& info) {
  std::size_t free_bytes = 0;
  std::size_t all_bytes = 0;
  MOESCOPE_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &all_bytes));
  const auto most = static_cast<std::int64_t>(std::bit_floor(free_bytes / 8));
  const std::int64_t least = kLeastBufferPerL2 * info.l2_bytes;
  if (most < least) {
    throw OutOfMemory("checking counters", static_cast<std::uint64_t>(8 * least), free_bytes);
  }
  return std::min(most, kMostBufferBytes);
}

/// What the cases share. Sizes are in bytes; `buffer` is a power of two.
struct Bench {
  explicit Bench(const DeviceInfo& device)
      : info(device), buffer(choose_buffer_bytes(device)), first(buffer), second(buffer) {
    launch_fill_random_bf16(first.get(), buffer / 2, 1, stream.get());
    launch_fill_random_bf16(second.get(), buffer / 2, 2, stream.get());
    graph = capture_graph(stream.get(), [&] { enqueue_layer_of_three(); });
    stream.synchronize();
  }

  float* floats() const { return std::bit_cast<float*>(second.get()); }
  int sms() const { return static_cast<int>(info.num_sms); }
  std::int64_t l2_range() const {
    return std::bit_floor(static_cast<std::uint64_t>(info.l2_bytes / kL2Part));
  }
  /// Three kernels, one of each kind of resource.
  void enqueue_layer_of_three() {
    launch_memory_copy(second.get(), first.get(), buffer, stream.get());
    launch_shared_write(sms(), kIterations, stream.get());
    launch_mma(sms(), kIterations, stream.get());
  }

  DeviceInfo info;
  Stream stream;
  CublasLt blas;
  std::int64_t buffer;
  DeviceBuffer<std::byte> first;
  DeviceBuffer<std::byte> second;
  CudaGraphExec graph;
};

/// Builds the list of cases.
class Cases {
 public:
  explicit Cases(std::shared_ptr<Bench> bench) : bench_(std::move(bench)) {}

  template <class Enqueue>
  void add(std::string name, std::string what, std::vector<KnownValue> expected, Enqueue enqueue) {
    cases.push_back({std::move(name), std::move(what), std::move(expected), [bench = bench_, enqueue] {
                       enqueue(*bench);
                       bench->stream.synchronize();
                     }});
  }

  std::vector<KnownCase> cases;

 private:
  std::shared_ptr<Bench> bench_;
};

KnownValue hbm(const char* metric, double bytes) { return {metric, bytes, kHbmTolerance}; }
KnownValue l2(const char* metric, double bytes) { return {metric, bytes, kL2Tolerance}; }
KnownValue shared(const char* metric, double bytes) { return {metric, bytes, kSharedTolerance}; }
KnownValue flop(const char* metric, double value) { return {metric, value, kFlopTolerance}; }
KnownValue leak(const char* metric, double of_bytes) { return {metric, kLeak * of_bytes, 0, true}; }

void add_hbm(Cases& cases, const Bench& bench) {
  const auto bytes = static_cast<double>(bench.buffer);
  cases.add("hbm_read", "a buffer far larger than L2 is read once",
            {hbm("hbm_read_bytes", bytes), l2("l2_read_bytes", bytes), leak("l2_write_bytes", bytes),
             l2("l2_miss_bytes", bytes)},
            [](Bench& b) { launch_memory_read(b.first.get(), b.buffer, b.stream.get()); });
  cases.add("hbm_write", "a buffer far larger than L2 is written once",
            {hbm("hbm_write_bytes", bytes), l2("l2_write_bytes", bytes), leak("hbm_read_bytes", bytes),
             leak("l2_read_bytes", bytes)},
            [](Bench& b) { launch_memory_write(b.second.get(), b.buffer, b.stream.get()); });
  cases.add("hbm_copy", "a buffer far larger than L2 is copied",
            {hbm("hbm_read_bytes", bytes), hbm("hbm_write_bytes", bytes), l2("l2_read_bytes", bytes),
             l2("l2_write_bytes", bytes), l2("l1_bytes", 2 * bytes)},
            [](Bench& b) { launch_memory_copy(b.second.get(), b.first.get(), b.buffer, b.stream.get()); });
  const std::int64_t rows = bench.buffer / kGatherRowBytes;
  const std::int64_t count = rows / kGatherPart;
  const auto gathered = static_cast<double>(count * kGatherRowBytes);
  cases.add("gather_rows", "scattered rows of 2 KiB, each once",
            {hbm("hbm_read_bytes", gathered), l2("l2_read_bytes", gathered)},
            [rows, count](Bench& b) { launch_gather_rows(b.first.get(), rows, count, b.stream.get()); });
}

void add_l2(Cases& cases, const Bench& bench) {
  const std::int64_t range = bench.l2_range();
  const auto bytes = static_cast<double>(kRounds * range);
  cases.add("l2_read", "a quarter of L2 is read again and again, past L1",
            {l2("l2_read_bytes", bytes), {"hbm_read_bytes", 2.0 * static_cast<double>(range), 0, true}},
            [range](Bench& b) { launch_memory_read(b.first.get(), range, b.stream.get(), kRounds); });
  cases.add("l2_reduction", "fp32 reductions (red) into a quarter of L2",
            {l2("l2_reduction_bytes", bytes), leak("l2_atomic_bytes", bytes)},
            [range](Bench& b) { launch_memory_reduce(b.floats(), range, b.stream.get(), kRounds); });
  cases.add("l2_atomic", "fp32 atomics that return the old value (atom), into a quarter of L2",
            {l2("l2_atomic_bytes", bytes), leak("l2_reduction_bytes", bytes)},
            [range](Bench& b) { launch_memory_atomic(b.floats(), range, b.stream.get(), kRounds); });
  cases.add("copy_async", "cp.async from a quarter of L2 into shared memory",
            {l2("l2_read_bytes", bytes), shared("shared_ldgsts_bytes", bytes)},
            [range](Bench& b) { launch_copy_async(b.first.get(), range, b.stream.get(), kRounds); });
}

void add_shared(Cases& cases, const Bench& bench) {
  const double threads = static_cast<double>(bench.sms()) * kStreamThreads;
  const double written = threads * kIterations * 16;
  cases.add("shared_read", "ld.shared, 16 bytes per thread",
            {shared("shared_load_bytes",
                    static_cast<double>(shared_read_bytes(bench.sms())) * kIterations / kRounds)},
            [](Bench& b) { launch_shared_read(b.sms(), kIterations / kRounds, b.stream.get()); });
  cases.add("shared_write", "st.shared and ldmatrix, 16 bytes per thread each",
            {shared("shared_store_bytes", written), shared("shared_load_bytes", written),
             shared("shared_bytes", 2 * written), shared("shared_pipe_bytes", 2 * written),
             leak("shared_bank_conflicts", written / 128)},
            [](Bench& b) { launch_shared_write(b.sms(), kIterations, b.stream.get()); });
  cases.add("shared_conflicts", "ld.shared of 4 bytes per thread, eight threads to a bank",
            {shared("shared_load_bytes", threads * kIterations * 4),
             shared("shared_bank_conflicts", threads / 32 * kIterations * 7)},
            [](Bench& b) { launch_shared_conflicts(b.sms(), kIterations, b.stream.get()); });
}

void add_flop(Cases& cases, const Bench& bench) {
  const double sms = bench.sms();
  const double mma = sms * kStreamWarps * kIterations * kMmaPerIteration * static_cast<double>(kMmaFlop);
  cases.add("mma_sync", "mma.sync.m16n8k16 of bf16", {flop("tensor_flop", mma)},
            [](Bench& b) { launch_mma(b.sms(), kIterations, b.stream.get()); });
  const auto extent = static_cast<double>(kMatrixExtent);
  cases.add("cublas_product", "cuBLASLt product of two 4096 x 4096 bf16 matrices",
            {flop("tensor_flop", 2 * extent * extent * extent)}, [](Bench& b) {
              Gemm gemm;
              gemm.m = gemm.n = gemm.k = kMatrixExtent;
              gemm.out = Dtype::kBF16;
              gemm.a = b.first.get();
              gemm.b = b.first.get() + 2 * kMatrixExtent * kMatrixExtent;
              gemm.d = b.second.get();
              b.blas.run(gemm, b.stream.get());
            });
  cases.add("fma_fp32", "fp32 multiply-adds",
            {flop("cuda_core_flop", static_cast<double>(fma_flop(bench.sms())) * kIterations / kRounds)},
            [](Bench& b) { launch_fma(b.sms(), kIterations / kRounds, b.stream.get()); });
  cases.add("fma_bf16", "packed bf16 multiply-adds",
            {flop("half_flop", 4.0 * sms * kStreamThreads * kIterations * kFmaPairsPerIteration)},
            [](Bench& b) { launch_fma_bf16(b.sms(), kIterations, b.stream.get()); });

  const auto copied = static_cast<double>(bench.buffer);
  const double written = sms * kStreamThreads * kIterations * 16;
  const std::vector<KnownValue> three = {hbm("hbm_read_bytes", copied), hbm("hbm_write_bytes", copied),
                                         shared("shared_pipe_bytes", 2 * written), flop("tensor_flop", mma)};
  auto alone = three;
  alone.push_back(shared("shared_bytes", 2 * written));
  cases.add("three_kernels", "copy, shared-memory and mma.sync kernels in one range", alone,
            [](Bench& b) { b.enqueue_layer_of_three(); });
  // CUPTI's counters of executed instructions (sm__sass_*) stay at zero in a graph, whether it was
  // instantiated before or during the measurement (CUPTI 13.0); the others do not.
  cases.add("graph_launch", "the same three kernels in a CUDA graph", three,
            [](Bench& b) { MOESCOPE_CUDA_CHECK(cudaGraphLaunch(b.graph.get(), b.stream.get())); });
}

void add_hopper(Cases& cases, const Bench& bench) {
  const std::int64_t range = bench.l2_range();
  const auto bytes = static_cast<double>(kRounds * range);
  cases.add("tma_load", "TMA bulk copies from a quarter of L2 into shared memory",
            {l2("l2_read_bytes", bytes), l2("tma_read_bytes", bytes), leak("shared_bytes", bytes)},
            [range](Bench& b) { launch_bulk_load(b.first.get(), range, b.stream.get(), kRounds); });
  cases.add("tma_store", "TMA bulk copies from shared memory",
            {l2("l2_write_bytes", static_cast<double>(bench.buffer)),
             hbm("hbm_write_bytes", static_cast<double>(bench.buffer))},
            [](Bench& b) { launch_bulk_store(b.second.get(), b.buffer, b.stream.get()); });
  cases.add("tma_reduction", "TMA bulk reductions of fp32 into a quarter of L2",
            {l2("l2_reduction_bytes", bytes)},
            [range](Bench& b) { launch_bulk_reduce(b.floats(), range, b.stream.get(), kRounds); });
  const double products = static_cast<double>(bench.sms()) * kStreamWarpgroups * kIterations;
  cases.add("wgmma", "wgmma.m64n64k16 of bf16, both operands in shared memory",
            {flop("tensor_flop", products * static_cast<double>(kWgmmaFlop)),
             shared("shared_gmma_bytes", products * static_cast<double>(kWgmmaOperandBytes))},
            [](Bench& b) { launch_wgmma(b.sms(), kIterations, b.stream.get()); });
}

}  // namespace

KnownWork make_cuda_known_work() {
  const auto bench = std::make_shared<Bench>(device_info());
  Cases cases(bench);
  add_hbm(cases, *bench);
  add_l2(cases, *bench);
  add_shared(cases, *bench);
  add_flop(cases, *bench);
  if (bench->info.compute_capability == 90) {
    add_hopper(cases, *bench);
  }
  KnownWork work;
  work.cases = std::move(cases.cases);
  work.before = [bench] {
    launch_memory_read(bench->second.get(), bench->buffer, bench->stream.get());
    bench->stream.synchronize();
  };
  return work;
}

}  // namespace moescope
