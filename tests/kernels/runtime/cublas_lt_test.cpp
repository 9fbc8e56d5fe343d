// Batched products through cuBLASLt against plain loops: what product keys ask of it, with strides and
// leading dimensions that are no multiples of anything.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using namespace cuda;

struct BatchedCase {
  std::int64_t batch, m, n, k;
};

class BatchedGemmGpu : public testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, BatchedGemmGpu, testing::Values(Dtype::kBF16, Dtype::kF32),
                         [](const auto& test) { return std::string(to_string(test.param)); });

HostTensor random_tensor(Dtype dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  HostTensor tensor(Dtype::kF32, rows, cols);
  const Philox random(seed, 1);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.f32().data[i] = static_cast<float>(test::normal(random, static_cast<std::uint64_t>(i)));
  }
  return tensor.to(dtype);
}

/// A [m, batch * k] side by side, B [batch, n, k] one under the other, D [m, batch * n] side by side.
TEST_P(BatchedGemmGpu, EqualsPlainLoops) {
  const Stream stream;
  CublasLt blas;
  for (const BatchedCase& c :
       {BatchedCase{1, 3, 8, 8}, BatchedCase{20, 64, 320, 128}, BatchedCase{8, 130, 444, 128},
        BatchedCase{6, 37, 7, 6}, BatchedCase{16, 9, 8, 5}, BatchedCase{2, 1, 1, 6}}) {
    const HostTensor a = random_tensor(GetParam(), c.m, c.batch * c.k, 1);
    const HostTensor b = random_tensor(GetParam(), c.batch * c.n, c.k, 2);
    const Bytes device_a = upload(a, stream.get());
    const Bytes device_b = upload(b, stream.get());
    const DeviceBuffer<float> d = make_filled<float>(c.m * c.batch * c.n, stream.get());
    Gemm gemm;
    gemm.m = c.m;
    gemm.n = c.n;
    gemm.k = c.k;
    gemm.in = GetParam();
    gemm.a = device_a.get();
    gemm.lda = c.batch * c.k;
    gemm.b = device_b.get();
    gemm.d = d.get();
    gemm.ldd = c.batch * c.n;
    gemm.batch = c.batch;
    gemm.stride_a = c.k;
    gemm.stride_b = c.n * c.k;
    gemm.stride_d = c.n;
    ASSERT_NO_THROW(blas.run(gemm, stream.get())) << "batch " << c.batch << " n " << c.n << " k " << c.k;
    const HostTensor out = download(Dtype::kF32, c.m, c.batch * c.n, d.get(), stream.get());
    for (std::int64_t row = 0; row < c.m; ++row) {
      for (std::int64_t col = 0; col < c.batch * c.n; ++col) {
        double want = 0;
        double squares = 0;
        for (std::int64_t i = 0; i < c.k; ++i) {
          const double term =
              static_cast<double>(a.at(row, col / c.n * c.k + i)) * static_cast<double>(b.at(col, i));
          want += term;
          squares += term * term;
        }
        ASSERT_NEAR(static_cast<double>(out.at(row, col)), want, 1e-6 * (1 + 8 * std::sqrt(squares)))
            << "batch " << c.batch << " n " << c.n << " k " << c.k << " at " << row << ", " << col;
      }
    }
  }
}

}  // namespace
}  // namespace moescope
