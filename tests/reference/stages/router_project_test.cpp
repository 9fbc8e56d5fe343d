#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>

#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

double exact_logit(const LayerInputs& inputs, const HostTensor& weight, const std::vector<float>& bias,
                   std::int64_t token, std::int64_t i) {
  double sum = bias.empty() ? 0.0 : bias[static_cast<std::size_t>(i)];
  for (std::int64_t k = 0; k < weight.cols(); ++k)
    sum += double{inputs.hidden_states.at(token, k)} * weight.at(i, k);
  return sum;
}

TEST(RouterProject, EqualsDoublePrecisionWithAndWithoutBias) {
  for (LayerShape shape : test::routing_shapes()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      for (const std::uint64_t seed : {2U, 3U}) {
        shape.dtype = dtype;
        const auto inputs = test::make_layer(shape, seed);
        ASSERT_EQ(inputs.router.row_bias.empty(), seed == 2U);
        const auto logits = reference::router_project(inputs);
        ASSERT_EQ(logits.row.cols(), shape.grid_rows);
        ASSERT_EQ(logits.col.cols(), shape.grid_cols);
        for (std::int64_t token = 0; token < shape.num_tokens; token += 13) {
          for (std::int64_t i = 0; i < shape.grid_rows; ++i) {
            ASSERT_NEAR(logits.row.at(token, i),
                        exact_logit(inputs, inputs.router.row, inputs.router.row_bias, token, i), 4e-6);
          }
          for (std::int64_t i = 0; i < shape.grid_cols; ++i) {
            ASSERT_NEAR(logits.col.at(token, i),
                        exact_logit(inputs, inputs.router.col, inputs.router.col_bias, token, i), 4e-6);
          }
        }
      }
    }
  }
}

TEST(MatmulNt, CrossesBlockBordersAndDoesNotDependOnThreads) {
  const auto a = test::random_tensor(Dtype::kBF16, 131, 70, 1, 1, RandomStream::kHiddenStates);
  const auto b = test::random_tensor(Dtype::kBF16, 515, 70, 1, 1, RandomStream::kRouterRow);
  const int threads = omp_get_max_threads();
  omp_set_num_threads(1);
  const auto one = reference::matmul_nt(a, b);
  omp_set_num_threads(3);
  const auto three = reference::matmul_nt(a, b);
  omp_set_num_threads(threads);
  EXPECT_EQ(std::memcmp(one.data(), three.data(), static_cast<std::size_t>(one.bytes())), 0);
  for (const std::int64_t i : {0, 63, 64, 130}) {
    for (const std::int64_t j : {0, 255, 256, 514}) {
      double sum = 0;
      for (std::int64_t k = 0; k < 70; ++k) sum += double{a.at(i, k)} * b.at(j, k);
      EXPECT_NEAR(one.at(i, j), sum, 2e-5);
    }
  }
}

// What is selected must not depend on where an expert stands: equal weights, equal scores, at every edge of
// every block.
TEST(RouterProject, GivesEqualRowsEqualLogitsWhereverTheyStand) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    for (const std::int64_t extent : {1, 2, 3, 5, 6, 7, 9, 17, 23, 31, 63, 65, 129, 257, 300}) {
      for (const std::int64_t length : {1, 7, 33, 64, 100}) {
        const auto x = test::random_tensor(dtype, 67, length, 1, 5, RandomStream::kHiddenStates);
        const auto one = test::random_tensor(dtype, 1, length, 1, 6, RandomStream::kRouterRow);
        HostTensor all(dtype, extent, length);
        for (std::int64_t i = 0; i < extent; ++i) {
          std::memcpy(all.data() + i * one.bytes(), one.data(), static_cast<std::size_t>(one.bytes()));
        }
        const HostTensor scores = reference::scores_nt(x, all);
        for (std::int64_t token = 0; token < x.rows(); ++token) {
          double exact = 0;
          for (std::int64_t k = 0; k < length; ++k) exact += double{x.at(token, k)} * one.at(0, k);
          ASSERT_NEAR(scores.at(token, 0), exact, 1e-4);
          for (std::int64_t i = 1; i < extent; ++i) {
            ASSERT_EQ(scores.at(token, i), scores.at(token, 0))
                << extent << ' ' << length << ' ' << token << ' ' << i;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace moescope
