// Grouped products on the GPU against fp64 loops: experts without rows, with one, with whole tiles and one
// more; extents that are no multiples of a block; rows by id and rows as they are; poisoned outputs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/grouped_gemm.hpp"
#include "kernels/runtime/device_info.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using namespace cuda;

TEST(GroupedTiles, BoundHoldsForEveryDistribution) {
  const auto tiles_of = [](const std::vector<std::int64_t>& loads) {
    std::int64_t tiles = 0;
    for (const std::int64_t load : loads) {
      tiles += (load + kGroupedTileRows - 1) / kGroupedTileRows;
    }
    return tiles;
  };
  const std::vector<std::vector<std::int64_t>> cases = {
      {1}, {128}, {129}, {0, 0, 5}, {1, 1, 1, 1}, {127, 128, 129, 1}, {1000, 0, 1}, {1, 129, 257, 385}};
  for (const auto& loads : cases) {
    std::int64_t rows = 0;
    for (const std::int64_t load : loads) {
      rows += load;
    }
    EXPECT_LE(tiles_of(loads), max_grouped_tiles(rows, std::ssize(loads))) << rows;
  }
}

TEST(GroupedGemm, RefusesExtentsThatItCannotLoad) {
  GroupedGemm gemm;
  gemm.num_experts = gemm.rows = 1;
  gemm.n = 8;
  gemm.k = 12;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { launch_grouped_product(gemm, nullptr); }),
            "grouped_gemm.k = 12: must be a multiple of 8");
  gemm.k = 0;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { launch_grouped_product(gemm, nullptr); }),
            "grouped_gemm.k = 0: in [1, 2^31)");
}

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

template <class T>
DeviceBuffer<T> to_device(const std::vector<T>& values, cudaStream_t stream) {
  DeviceBuffer<T> device(std::ssize(values));
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(device.get(), values.data(), static_cast<std::size_t>(device.bytes()),
                                      cudaMemcpyHostToDevice, stream));
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return device;
}

/// Rows of each expert, and the extents of the product.
struct GroupedCase {
  std::vector<std::int32_t> loads;
  std::int64_t n, k;
};

const std::vector<GroupedCase>& cases() {
  static const std::vector<GroupedCase> kCases = {
      {{1}, 8, 8},
      {{0, 3, 0, 65, 64}, 40, 24},
      {{129, 0, 1, 128}, 136, 72},
      {{300, 17}, 264, 1000},
      {{5, 0, 200, 128, 63, 1, 1, 90}, 512, 320},
      {{2000}, 1024, 64},  // more items than multiprocessors
  };
  return kCases;
}

class GroupedGemmGpu : public testing::TestWithParam<Dtype> {
 protected:
  void SetUp() override {
    MOESCOPE_NEEDS_GPU();
    if (!grouped_gemm_supported(GetParam(), current_gpu())) {
      GTEST_SKIP() << "grouped products in " << to_string(GetParam()) << " need compute capability 9.0";
    }
  }

  /// `activation` null: the plain product.
  void expect_products(const GroupedCase& c, const Activation* activation, bool by_id, std::uint64_t seed) {
    const Dtype dtype = GetParam();
    const auto num_experts = std::ssize(c.loads);
    std::vector<GroupedTile> tiles;
    std::vector<std::int32_t> expert_of_row;
    for (std::int32_t e = 0; e < num_experts; ++e) {
      const std::int32_t load = c.loads[static_cast<std::size_t>(e)];
      for (std::int32_t row = 0; row < load; row += static_cast<std::int32_t>(kGroupedTileRows)) {
        tiles.push_back({.expert = e,
                         .first_row = static_cast<std::int32_t>(expert_of_row.size()) + row,
                         .count = std::min(load - row, static_cast<std::int32_t>(kGroupedTileRows))});
      }
      expert_of_row.insert(expert_of_row.end(), static_cast<std::size_t>(load), e);
    }
    const auto rows = std::ssize(expert_of_row);
    const std::int64_t parts = activation != nullptr ? 2 : 1;
    const std::int64_t a_rows = by_id ? rows / 2 + 1 : rows;
    const HostTensor a = random_tensor(dtype, a_rows, c.k, seed, 1);
    const HostTensor weights = random_tensor(dtype, num_experts * parts * c.n, c.k, seed + 1,
                                             2 / std::sqrt(static_cast<double>(c.k)));
    std::vector<std::int32_t> ids;
    for (std::int64_t row = 0; row < rows; ++row) {
      ids.push_back(static_cast<std::int32_t>(by_id ? row * 7919 % a_rows : row));
    }

    const Stream stream;
    const Bytes device_a = upload(a, stream.get());
    const Bytes device_weights = upload(weights, stream.get());
    const auto device_ids = to_device(ids, stream.get());
    const auto device_tiles = to_device(tiles, stream.get());
    const auto num_tiles =
        to_device(std::vector<std::int32_t>{static_cast<std::int32_t>(tiles.size())}, stream.get());
    const Bytes out = make_filled<std::byte>(rows * c.n * dtype_bytes(dtype), stream.get());
    GroupedGemm gemm;
    gemm.dtype = dtype;
    gemm.num_experts = num_experts;
    gemm.rows = rows;
    gemm.n = c.n;
    gemm.k = c.k;
    gemm.a = device_a.get();
    gemm.row_ids = by_id ? device_ids.get() : nullptr;
    gemm.weights = device_weights.get();
    gemm.out = out.get();
    gemm.tiles = device_tiles.get();
    gemm.num_tiles = num_tiles.get();
    if (activation != nullptr) {
      launch_grouped_gated(gemm, *activation, stream.get());
    } else {
      launch_grouped_product(gemm, stream.get());
    }
    const HostTensor result = download(dtype, rows, c.n, out.get(), stream.get());

    double difference = 0;
    double norm = 0;
    const std::int64_t step = rows > 500 ? 37 : 1;
    for (std::int64_t row = 0; row < rows; row += step) {
      const std::int64_t first = std::int64_t{expert_of_row[static_cast<std::size_t>(row)]} * parts * c.n;
      const auto dot = [&](std::int64_t weight_row) {
        double sum = 0;
        for (std::int64_t i = 0; i < c.k; ++i) {
          sum += static_cast<double>(a.at(ids[static_cast<std::size_t>(row)], i)) *
                 static_cast<double>(weights.at(weight_row, i));
        }
        return sum;
      };
      for (std::int64_t col = 0; col < c.n; ++col) {
        const double gate = dot(first + col);
        const double want =
            activation != nullptr ? activate(*activation, gate) * dot(first + c.n + col) : gate;
        const double delta = static_cast<double>(result.at(row, col)) - want;
        difference += delta * delta;
        norm += want * want;
      }
    }
    // NaN of a place that nothing wrote fails: the comparison is false.
    EXPECT_TRUE(std::sqrt(difference) <= (dtype == Dtype::kF32 ? 3e-6 : 3e-3) * std::sqrt(norm))
        << "experts " << num_experts << " rows " << rows << " n " << c.n << " k " << c.k << " by_id " << by_id
        << ": " << std::sqrt(difference) << " of " << std::sqrt(norm);
  }
};
INSTANTIATE_TEST_SUITE_P(Dtypes, GroupedGemmGpu, testing::Values(Dtype::kBF16, Dtype::kF32),
                         [](const auto& param) { return std::string(to_string(param.param)); });

TEST_P(GroupedGemmGpu, GatedProductsOfRowsByIdEqualPlainLoops) {
  std::uint64_t seed = 1;
  for (const GroupedCase& c : cases()) {
    const Activation silu = Activation::kSilu;
    expect_products(c, &silu, true, seed += 2);
  }
}

TEST_P(GroupedGemmGpu, GatedProductsOfRowsAsTheyAreEqualPlainLoops) {
  std::uint64_t seed = 50;
  for (const GroupedCase& c : cases()) {
    const Activation silu = Activation::kSilu;
    expect_products(c, &silu, false, seed += 2);
  }
}

TEST_P(GroupedGemmGpu, EveryActivationIsApplied) {
  for (const Activation activation : {Activation::kGelu, Activation::kRelu}) {
    expect_products(cases()[2], &activation, true, 90);
    expect_products(cases()[2], &activation, false, 92);
  }
}

TEST_P(GroupedGemmGpu, PlainProductsEqualPlainLoops) {
  std::uint64_t seed = 100;
  for (const GroupedCase& c : cases()) {
    expect_products(c, nullptr, false, seed += 2);
  }
}

}  // namespace
}  // namespace moescope
