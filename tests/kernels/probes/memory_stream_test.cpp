// The streams of known traffic move what they say.
#include "kernels/probes/memory_stream.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/gpu_guard.hpp"

namespace moescope::cuda {
namespace {

/// No multiple of what a block takes at a time.
constexpr std::int64_t kBytes = (std::int64_t{1} << 20) + 48;

std::vector<std::byte> download(const DeviceBuffer<std::byte>& buffer, const Stream& stream) {
  std::vector<std::byte> host(static_cast<std::size_t>(buffer.bytes()));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(host.data(), buffer.get(), host.size(), cudaMemcpyDeviceToHost, stream.get()));
  stream.synchronize();
  return host;
}

TEST(MemoryStreamGpu, CopiesEveryByteAndNothingBehind) {
  MOESCOPE_NEEDS_GPU();
  const Stream stream;
  const DeviceBuffer<std::byte> from(kBytes);
  const DeviceBuffer<std::byte> to(kBytes + 16);
  launch_fill_random_bf16(from.get(), kBytes / 2, 1, stream.get());
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(to.get(), 0x5a, static_cast<std::size_t>(to.bytes()), stream.get()));
  launch_memory_read(from.get(), kBytes, stream.get(), 3);
  launch_memory_copy(to.get(), from.get(), kBytes, stream.get());
  const auto source = download(from, stream);
  const auto copy = download(to, stream);
  EXPECT_EQ(std::memcmp(source.data(), copy.data(), source.size()), 0);
  EXPECT_TRUE(std::all_of(copy.end() - 16, copy.end(), [](std::byte b) { return b == std::byte{0x5a}; }));
}

TEST(MemoryStreamGpu, WritesEveryVectorAndNothingBehind) {
  MOESCOPE_NEEDS_GPU();
  const Stream stream;
  const DeviceBuffer<std::byte> buffer(kBytes + 16);
  MOESCOPE_CUDA_CHECK(
      cudaMemsetAsync(buffer.get(), 0, static_cast<std::size_t>(buffer.bytes()), stream.get()));
  launch_memory_write(buffer.get(), kBytes, stream.get());
  const auto host = download(buffer, stream);
  for (std::int64_t i = 0; i < kBytes + 16; i += 16) {
    const bool untouched =
        std::all_of(host.begin() + i, host.begin() + i + 16, [](std::byte b) { return b == std::byte{0}; });
    ASSERT_EQ(untouched, i >= kBytes) << "vector at byte " << i;
  }
}

TEST(MemoryStreamGpu, ReducesEveryFloatOncePerRound) {
  MOESCOPE_NEEDS_GPU();
  const Stream stream;
  const DeviceBuffer<float> sums(kBytes / 4 + 4);
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(sums.get(), 0, static_cast<std::size_t>(sums.bytes()), stream.get()));
  launch_memory_reduce(sums.get(), kBytes, stream.get(), 5);
  std::vector<float> host(static_cast<std::size_t>(sums.count()));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(host.data(), sums.get(), static_cast<std::size_t>(sums.bytes()),
                                      cudaMemcpyDeviceToHost, stream.get()));
  stream.synchronize();
  for (std::int64_t i = 0; i < sums.count(); ++i) {
    ASSERT_EQ(host[static_cast<std::size_t>(i)], i < kBytes / 4 ? 5.0F : 0.0F) << i;
  }
}

TEST(MemoryStreamGpu, BulkReadsTakeWholeRoundsOfAnyRange) {
  MOESCOPE_NEEDS_GPU();
  constexpr std::int64_t kPiece = 16 * 1024;
  EXPECT_EQ(bulk_read_bytes(3, 1), 3 * 4 * kPiece);
  EXPECT_EQ(bulk_read_bytes(3, 3 * 4 * kPiece), 3 * 4 * kPiece);
  EXPECT_EQ(bulk_read_bytes(3, 3 * 4 * kPiece + 1), 2 * 3 * 4 * kPiece);
  const DeviceInfo info = device_info();
  if (info.compute_capability < 90) {
    return;  // no bulk copies there, and no probe that asks for them
  }
  const Stream stream;
  const DeviceBuffer<std::byte> data(7 * kPiece);  // memcheck sees a read behind it
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(data.get(), 1, static_cast<std::size_t>(data.bytes()), stream.get()));
  for (const std::int64_t bytes : {1, 5, 100}) {
    launch_bulk_read(data.get(), data.bytes(), bulk_read_bytes(3, bytes * kPiece), 3, stream.get());
  }
  EXPECT_NO_THROW(stream.synchronize());
}

TEST(MemoryStreamGpu, LoopsOfSharedMemoryAndMultiplyAddsRun) {
  MOESCOPE_NEEDS_GPU();
  const Stream stream;
  launch_shared_read(2, 3, stream.get());
  launch_fma(2, 3, stream.get());
  EXPECT_NO_THROW(stream.synchronize());
}

}  // namespace
}  // namespace moescope::cuda
