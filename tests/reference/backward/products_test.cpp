// The two products of the backward against plain loops, with extents beyond one block.
#include "reference/backward/products.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "reference/oracle/training_check.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

OracleGradient product(const HostTensor& a, const HostTensor& b, bool transposed) {
  const auto rows = transposed ? a.cols() : a.rows();
  const auto terms = transposed ? a.rows() : a.cols();
  OracleGradient out(rows, b.cols());
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < b.cols(); ++j) {
      for (std::int64_t k = 0; k < terms; ++k) {
        const double one = static_cast<double>(transposed ? a.at(k, i) : a.at(i, k)) * b.at(k, j);
        out.row(i)[j] += one;
        out.term_squares += one * one;
      }
    }
  }
  return out;
}

TEST(BackwardProducts, AreThoseOfPlainLoops) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    for (const auto& [m, k, n] : {std::array{1, 1, 1}, std::array{70, 300, 260}, std::array{65, 7, 513}}) {
      const auto a = test::random_tensor(dtype, m, k, 1, 1, RandomStream::kExpertIn);
      const auto b = test::random_tensor(dtype, k, n, 1, 2, RandomStream::kExpertIn);
      HostTensor sum = HostTensor::zeros(Dtype::kF32, m, n);
      reference::add_product_nn(a, b, sum);
      EXPECT_LE(compare_gradient(sum, product(a, b, false), Dtype::kF32).error, 1e-6);
      const auto c = test::random_tensor(dtype, m, n, 1, 3, RandomStream::kExpertIn);
      EXPECT_LE(compare_gradient(reference::matmul_tn(a, c), product(a, c, true), Dtype::kF32).error, 1e-6);
    }
  }
}

TEST(BackwardProducts, AddToWhatIsThere) {
  const auto a = test::random_tensor(Dtype::kF32, 3, 4, 1, 1, RandomStream::kExpertIn);
  const auto b = test::random_tensor(Dtype::kF32, 4, 5, 1, 2, RandomStream::kExpertIn);
  HostTensor once = HostTensor::zeros(Dtype::kF32, 3, 5);
  reference::add_product_nn(a, b, once);
  HostTensor twice = once.clone();
  reference::add_product_nn(a, b, twice);
  for (std::int64_t i = 0; i < once.size(); ++i) {
    EXPECT_NEAR(twice.f32().data[i], 2 * once.f32().data[i], 1e-5);
  }
}

}  // namespace
}  // namespace moescope
