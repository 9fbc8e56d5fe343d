// shared_mlp and the output's rounding on the GPU against fp64 loops.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/gated_mlp.hpp"
#include "kernels/runtime/cublas_lt.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using namespace cuda;

HostTensor random_tensor(Dtype dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed,
                         double scale) {
  HostTensor tensor(Dtype::kF32, rows, cols);
  const Philox random(seed, 1);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.f32().data[i] = static_cast<float>(scale * test::normal(random, static_cast<std::uint64_t>(i)));
  }
  return tensor.to(dtype);
}

double activate(Activation activation, double s) {
  switch (activation) {
    case Activation::kSilu:
      return s / (1 + std::exp(-s));
    case Activation::kGelu:
      return 0.5 * s * (1 + std::erf(s / std::sqrt(2.0)));
    case Activation::kRelu:
      return std::max(s, 0.0);
  }
  return 0;
}

double dot(const HostTensor& a, std::int64_t row_a, const HostTensor& b, std::int64_t row_b) {
  double sum = 0;
  for (std::int64_t k = 0; k < a.cols(); ++k) {
    sum += static_cast<double>(a.at(row_a, k)) * static_cast<double>(b.at(row_b, k));
  }
  return sum;
}

struct MlpCase {
  std::int64_t num_tokens, hidden_size, shared_size;
};

class SharedMlpGpu : public testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override { MOESCOPE_NEEDS_GPU(); }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, SharedMlpGpu, testing::Values(Dtype::kBF16, Dtype::kF32),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(SharedMlpGpu, EqualsThePlainLoops) {
  const Stream stream;
  CublasLt blas;
  std::uint64_t seed = 100;
  // The last case needs two chunks of tokens; only some of its tokens are compared.
  for (const MlpCase& c : {MlpCase{1, 8, 1}, MlpCase{3, 24, 5}, MlpCase{130, 96, 300}, MlpCase{64, 1000, 513},
                           MlpCase{1700, 64, 1024}}) {
    for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
      LayerShape shape = test::make_shape(c.num_tokens, c.hidden_size, 1, 1, 1, c.shared_size);
      shape.dtype = GetParam();
      shape.activation = activation;
      const std::int64_t d = c.hidden_size;
      const std::int64_t h = c.shared_size;
      const HostTensor x = random_tensor(shape.dtype, c.num_tokens, d, ++seed, 1);
      ExpertWeights experts;
      experts.w_in = random_tensor(shape.dtype, 1, d, ++seed, 1);
      experts.w_out = random_tensor(shape.dtype, 1, d, ++seed, 1);
      const double scale = 2 / std::sqrt(static_cast<double>(d));
      experts.shared.emplace(SharedMlpWeights{random_tensor(shape.dtype, h, d, ++seed, scale),
                                              random_tensor(shape.dtype, h, d, ++seed, scale),
                                              random_tensor(shape.dtype, d, h, ++seed, scale)});

      const Bytes device_x = upload(x, stream.get());
      const ExpertBuffers buffers(shape, experts, stream.get());
      DeviceWeights weights;
      buffers.describe(weights);
      const DeviceBuffer<float> y = make_filled<float>(c.num_tokens * d, stream.get());
      const Bytes workspace(shared_mlp_workspace_bytes(shape));
      MOESCOPE_CUDA_CHECK(
          cudaMemsetAsync(workspace.get(), 0xff, static_cast<std::size_t>(workspace.bytes()), stream.get()));
      launch_shared_mlp(blas, shape, device_x.get(), weights, workspace.get(), y.get(), stream.get());
      const HostTensor out = download(Dtype::kF32, c.num_tokens, d, y.get(), stream.get());

      double difference = 0;
      double norm = 0;
      const std::int64_t step = c.num_tokens > 1000 ? 131 : 1;
      for (std::int64_t t = c.num_tokens - 1; t >= 0; t -= step) {
        std::vector<double> hidden;
        for (std::int64_t j = 0; j < h; ++j) {
          hidden.push_back(static_cast<double>(round_to(
              shape.dtype, static_cast<float>(activate(activation, dot(x, t, experts.shared->gate, j)) *
                                              dot(x, t, experts.shared->up, j)))));
        }
        for (std::int64_t i = 0; i < d; ++i) {
          double want = 0;
          for (std::int64_t j = 0; j < h; ++j) {
            want += hidden[static_cast<std::size_t>(j)] * static_cast<double>(experts.shared->down.at(i, j));
          }
          const double delta = static_cast<double>(out.at(t, i)) - want;
          difference += delta * delta;
          norm += want * want;
        }
      }
      // As a product: a relu may leave nothing but zeros, which are then expected exactly.
      EXPECT_LE(std::sqrt(difference), (GetParam() == Dtype::kF32 ? 3e-6 : 1e-3) * std::sqrt(norm))
          << shape.label() << " h " << h << " " << to_string(activation);
    }
  }
}

TEST_P(SharedMlpGpu, TakesGateAndUpApartInABorrowedWorkspace) {
  const Stream stream;
  std::uint64_t seed = 500;
  for (const MlpCase& c :
       {MlpCase{1, 8, 1}, MlpCase{130, 96, 300}, MlpCase{64, 1000, 513}, MlpCase{1700, 64, 1024}}) {
    LayerShape shape = test::make_shape(c.num_tokens, c.hidden_size, 1, 1, 1, c.shared_size);
    shape.dtype = GetParam();
    const HostTensor gate = random_tensor(shape.dtype, c.shared_size, c.hidden_size, ++seed, 0.1);
    const HostTensor up = random_tensor(shape.dtype, c.shared_size, c.hidden_size, ++seed, 0.1);
    const Bytes x = upload(random_tensor(shape.dtype, c.num_tokens, c.hidden_size, ++seed, 1), stream.get());
    const Bytes both = stack(gate, up, stream.get());
    const Bytes gate_alone = upload(gate, stream.get());
    const Bytes up_alone = upload(up, stream.get());
    const Bytes down =
        upload(random_tensor(shape.dtype, c.hidden_size, c.shared_size, ++seed, 0.1), stream.get());
    const Bytes workspace(shared_mlp_workspace_bytes(shape));
    const auto run = [&](CublasLt& blas, const GatedMlpWeights& weights) {
      const auto y = make_filled<float>(c.num_tokens * c.hidden_size, stream.get());
      launch_gated_mlp(blas, shape, x.get(), weights, workspace.get(), y.get(), stream.get());
      return download(Dtype::kF32, c.num_tokens, c.hidden_size, y.get(), stream.get());
    };
    CublasLt own;
    const HostTensor joined = run(own, {.gate = both.get(), .up = nullptr, .down = down.get()});
    const Bytes lent(CublasLt::kWorkspaceBytes);
    CublasLt without(0);
    without.borrow(nullptr, lent.get(), lent.bytes());
    const HostTensor apart =
        run(without, {.gate = gate_alone.get(), .up = up_alone.get(), .down = down.get()});
    double difference = 0;
    double norm = 0;
    for (std::int64_t i = 0; i < joined.size(); ++i) {
      const double want = joined.f32().data[i];
      difference += (apart.f32().data[i] - want) * (apart.f32().data[i] - want);
      norm += want * want;
    }
    EXPECT_GT(norm, 0);
    EXPECT_LE(std::sqrt(difference), (GetParam() == Dtype::kF32 ? 3e-6 : 1e-3) * std::sqrt(norm))
        << shape.label();
  }
}

TEST(RoundOutputGpu, RoundsTheSumToNearestEven) {
  MOESCOPE_NEEDS_GPU();
  const Stream stream;
  for (const auto& [tokens, d] : {std::pair<std::int64_t, std::int64_t>{1, 8}, {37, 24}, {3000, 1000}}) {
    for (const Dtype dtype : {Dtype::kBF16, Dtype::kF32}) {
      for (const bool with_addend : {false, true}) {
        LayerShape shape = test::make_shape(tokens, d, 1, 1, 1);
        shape.dtype = dtype;
        HostTensor y = random_tensor(Dtype::kF32, tokens, d, 5, 1);
        HostTensor addend = random_tensor(Dtype::kF32, tokens, d, 6, 1);
        y.f32().data[0] = 1 + 0x1.0p-8F;  // halfway: to even
        y.f32().data[1] = 1 + 0x3.0p-8F;
        addend.f32().data[0] = addend.f32().data[1] = 0;
        const Bytes device_y = upload(y, stream.get());
        const Bytes device_addend = upload(addend, stream.get());
        const Bytes rounded = make_filled<std::byte>(tokens * d * 2, stream.get());
        void* const output = dtype == Dtype::kF32 ? device_y.get() : rounded.get();
        launch_round_output(
            shape, static_cast<const float*>(static_cast<const void*>(device_y.get())),
            with_addend ? static_cast<const float*>(static_cast<const void*>(device_addend.get())) : nullptr,
            output, stream.get());
        const HostTensor out = download(dtype, tokens, d, output, stream.get());
        for (std::int64_t i = 0; i < y.size(); ++i) {
          const float want = y.f32().data[i] + (with_addend ? addend.f32().data[i] : 0);
          ASSERT_EQ(out.at(i / d, i % d), round_to(dtype, want)) << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moescope
