#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>

#include "core/base/error.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/content_hash.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

std::uint64_t hash_of(const ExpertWeights& experts) {
  test::ContentHash hash;
  hash.add(experts.w_in);
  hash.add(experts.w_out);
  if (experts.shared) {
    hash.add(experts.shared->gate);
    hash.add(experts.shared->up);
    hash.add(experts.shared->down);
  }
  return hash.value();
}

TEST(ExpertWeights, HaveTheExtentsAndScaleOfTheLayer) {
  const auto shape = test::make_shape(1, 64, 16, 20, 4, 24);
  const auto experts = make_expert_weights(shape, 3);
  ASSERT_TRUE(experts->shared.has_value());
  EXPECT_EQ(experts->w_in.rows(), 320);
  EXPECT_EQ(experts->w_out.cols(), 64);
  EXPECT_EQ(experts->shared->gate.rows(), 24);
  EXPECT_EQ(experts->shared->down.cols(), 24);
  for (const HostTensor* tensor : {&experts->w_in, &experts->w_out, &experts->shared->gate,
                                   &experts->shared->up, &experts->shared->down}) {
    EXPECT_EQ(tensor->dtype(), Dtype::kBF16);
    double square = 0;
    for (std::int64_t i = 0; i < tensor->size(); ++i) {
      square += std::pow(tensor->at(i / tensor->cols(), i % tensor->cols()), 2);
    }
    const auto size = static_cast<double>(tensor->size());
    EXPECT_NEAR(square / size * 64, 1, 5 * std::sqrt(2 / size));  // five standard deviations
  }
}

TEST(ExpertWeights, AreFiveIndependentTensorsAndDependOnTheSeed) {
  const auto shape = test::make_shape(1, 16, 4, 4, 4, 16);
  const auto experts = make_expert_weights(shape, 3);
  const auto& shared = *experts->shared;
  const std::array<const HostTensor*, 5> tensors = {&experts->w_in, &experts->w_out, &shared.gate, &shared.up,
                                                    &shared.down};
  for (std::size_t a = 0; a < tensors.size(); ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      EXPECT_NE(test::content_hash(*tensors[a]), test::content_hash(*tensors[b])) << a << " and " << b;
    }
  }
  EXPECT_NE(hash_of(*experts), hash_of(*make_expert_weights(shape, 4)));
}

TEST(ExpertWeights, OfBf16AreThoseOfFp32Rounded) {
  auto shape = test::make_shape(1, 24, 7, 5, 4);
  const auto narrow = make_expert_weights(shape, 8);
  shape.dtype = Dtype::kF32;
  const auto wide = make_expert_weights(shape, 8);
  EXPECT_EQ(test::content_hash(wide->w_in.to(Dtype::kBF16)), test::content_hash(narrow->w_in));
  EXPECT_FALSE(narrow->shared.has_value());
}

// Golden values: another machine, compiler or number of threads must give the same bits.
TEST(ExpertWeights, AreTheSameBitsOnEveryMachineWhateverTheNumberOfThreads) {
  auto shape = test::make_shape(1, 96, 48, 16, 8, 40);
  const int threads = omp_get_max_threads();
  for (const int count : {1, 2, 5}) {
    omp_set_num_threads(count);
    shape.dtype = Dtype::kBF16;
    EXPECT_EQ(hash_of(*make_expert_weights(shape, 42)), 9747896482210809207U) << count << " threads";
    shape.dtype = Dtype::kF32;
    EXPECT_EQ(hash_of(*make_expert_weights(shape, 42)), 1678288639228850545U) << count << " threads";
  }
  omp_set_num_threads(threads);
}

TEST(ExpertWeights, OfAnImpossibleShapeAreRefused) {
  EXPECT_EQ(
      test::error_text<InvalidArgument>([] { make_expert_weights(test::make_shape(1, 8, 4, 4, 17), 0); }),
      "top_k = 17: must not exceed num_experts = 16 (4 x 4)");
  const auto text = test::error_text<OutOfMemory>(
      [] { make_expert_weights(test::make_shape(1, 1 << 20, 1 << 15, 1 << 15, 8), 0); });
  EXPECT_EQ(text.rfind("host tensor needs 2251799813685248 bytes", 0), 0U) << text;
}

}  // namespace
}  // namespace moescope
