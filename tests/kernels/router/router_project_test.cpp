// router_project on the GPU, and the matrix product behind it, against fp64 loops.
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

HostTensor random_tensor(Dtype dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  HostTensor tensor(Dtype::kF32, rows, cols);
  const Philox random(seed, 1);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.f32().data[i] = static_cast<float>(test::normal(random, static_cast<std::uint64_t>(i)));
  }
  return tensor.to(dtype);
}

/// ||out - expected|| / ||expected||; NaN (what the poison reads as) never compares below a tolerance.
double relative_error(const HostTensor& out, const std::vector<double>& expected) {
  double difference = 0;
  double norm = 0;
  for (std::int64_t i = 0; i < out.size(); ++i) {
    const double want = expected[static_cast<std::size_t>(i)];
    const double delta = static_cast<double>(out.at(i / out.cols(), i % out.cols())) - want;
    difference += delta * delta;
    norm += want * want;
  }
  return std::sqrt(difference / norm);
}

void poison(void* data, std::int64_t bytes, const Stream& stream) {
  MOESCOPE_CUDA_CHECK(cudaMemsetAsync(data, 0xff, static_cast<std::size_t>(bytes), stream.get()));
}

class RouterProjectGpu : public testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, RouterProjectGpu, testing::Values(Dtype::kBF16, Dtype::kF32),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(RouterProjectGpu, EqualsTheProductPlusBias) {
  const Stream stream;
  CublasLt blas;
  std::uint64_t seed = 1;
  for (const LayerShape& base : {test::make_shape(1, 8, 1, 1, 1), test::make_shape(1, 1024, 320, 320, 1),
                                 test::make_shape(3, 96, 48, 16, 1), test::make_shape(130, 1000, 7, 11, 1),
                                 test::make_shape(257, 256, 64, 64, 1), test::make_shape(50, 16, 1, 64, 1)}) {
    for (const bool with_bias : {true, false}) {
      LayerShape shape = base;
      shape.dtype = GetParam();
      const HostTensor x = random_tensor(shape.dtype, shape.num_tokens, shape.hidden_size, ++seed);
      RouterWeights router;
      router.row = random_tensor(shape.dtype, shape.grid_rows, shape.hidden_size, ++seed);
      router.col = random_tensor(shape.dtype, shape.grid_cols, shape.hidden_size, ++seed);
      if (with_bias) {
        for (std::int64_t i = 0; i < shape.grid_rows; ++i)
          router.row_bias.push_back(0.5F * static_cast<float>(i));
        for (std::int64_t i = 0; i < shape.grid_cols; ++i) router.col_bias.push_back(-static_cast<float>(i));
      }
      const Bytes device_x = upload(x, stream.get());
      const RouterBuffers buffers(shape, router, stream.get());
      DeviceWeights weights;
      buffers.describe(weights);
      const std::int64_t width = shape.grid_rows + shape.grid_cols;
      const DeviceBuffer<float> logits(shape.num_tokens * width);
      poison(logits.get(), logits.bytes(), stream);
      launch_router_project(blas, shape, device_x.get(), weights, logits.get(), stream.get());
      const HostTensor out = download(Dtype::kF32, shape.num_tokens, width, logits.get(), stream.get());

      std::vector<double> expected;
      for (std::int64_t t = 0; t < shape.num_tokens; ++t) {
        for (std::int64_t i = 0; i < width; ++i) {
          const bool is_row = i < shape.grid_rows;
          const HostTensor& side = is_row ? router.row : router.col;
          const std::int64_t index = is_row ? i : i - shape.grid_rows;
          double sum = 0;
          for (std::int64_t k = 0; k < shape.hidden_size; ++k) {
            sum += static_cast<double>(x.at(t, k)) * static_cast<double>(side.at(index, k));
          }
          if (with_bias) {
            sum += static_cast<double>(
                (is_row ? router.row_bias : router.col_bias)[static_cast<std::size_t>(index)]);
          }
          expected.push_back(sum);
        }
      }
      EXPECT_LE(relative_error(out, expected), 3e-6) << shape.label() << " bias " << with_bias;
      const RouterLogits halves = download_logits(shape, logits.get(), stream.get());
      EXPECT_EQ(halves.row.at(0, shape.grid_rows - 1), out.at(0, shape.grid_rows - 1));
      EXPECT_EQ(halves.col.at(shape.num_tokens - 1, 0), out.at(shape.num_tokens - 1, shape.grid_rows));
    }
  }
}

TEST_P(RouterProjectGpu, CublasLtAddsToItsOutputAndHonoursLeadingDimensions) {
  const Stream stream;
  CublasLt blas;
  const Dtype dtype = GetParam();
  const std::int64_t m = 37;
  const std::int64_t n = 24;
  const std::int64_t k = 40;
  const HostTensor a = random_tensor(dtype, m, 56, 1);
  for (const bool transpose_b : {true, false}) {
    const HostTensor b = random_tensor(dtype, transpose_b ? n : k, 48, 2);
    const HostTensor c = random_tensor(Dtype::kF32, m, 32, 3);
    const Bytes device_a = upload(a, stream.get());
    const Bytes device_b = upload(b, stream.get());
    const Bytes device_d = upload(c, stream.get());
    Gemm gemm;
    gemm.m = m;
    gemm.n = n;
    gemm.k = k;
    gemm.transpose_b = transpose_b;
    gemm.in = dtype;
    gemm.a = device_a.get();
    gemm.lda = 56;
    gemm.b = device_b.get();
    gemm.ldb = 48;
    gemm.d = device_d.get();
    gemm.ldd = 32;
    gemm.beta = 1;
    blas.run(gemm, stream.get());
    const HostTensor out = download(Dtype::kF32, m, 32, device_d.get(), stream.get());
    std::vector<double> expected;
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t j = 0; j < 32; ++j) {
        double sum = static_cast<double>(c.at(i, j));
        for (std::int64_t p = 0; j < n && p < k; ++p) {
          sum += static_cast<double>(a.at(i, p)) * static_cast<double>(transpose_b ? b.at(j, p) : b.at(p, j));
        }
        expected.push_back(sum);
      }
    }
    EXPECT_LE(relative_error(out, expected), 1e-6) << "transpose_b " << transpose_b;
  }
}

TEST_P(RouterProjectGpu, CublasLtRefusesExtentsThatDoNotFit) {
  CublasLt blas;
  Gemm gemm;
  gemm.m = 1;
  gemm.n = 1;
  EXPECT_THROW(blas.run(gemm, nullptr), InvalidArgument);
  gemm.k = 8;
  gemm.lda = 7;
  EXPECT_THROW(blas.run(gemm, nullptr), InvalidArgument);
}

}  // namespace
}  // namespace moescope
