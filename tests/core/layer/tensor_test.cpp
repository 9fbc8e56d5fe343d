#include "core/layer/tensor.hpp"

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

HostTensor counting(std::int64_t rows, std::int64_t cols) {
  HostTensor tensor(Dtype::kF32, rows, cols);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    tensor.f32().data[i] = static_cast<float>(i) + 0.001F;
  }
  return tensor;
}

TEST(HostTensor, IsRowMajorAndAlignedToACacheLine) {
  HostTensor tensor = counting(3, 5);
  EXPECT_EQ(std::bit_cast<std::uintptr_t>(tensor.data()) % 64, 0U);
  EXPECT_EQ(tensor.f32().row(2), tensor.f32().data + 10);
  EXPECT_EQ(tensor.f32().row_span(1).size(), 5U);
  EXPECT_EQ(tensor.at(2, 4), 14.001F);
  EXPECT_EQ(tensor.bytes(), 60);
  EXPECT_EQ(HostTensor(Dtype::kBF16, 3, 5).bytes(), 30);
}

TEST(HostTensor, ZerosAreZeroInBothTypes) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const HostTensor tensor = HostTensor::zeros(dtype, 4, 7);
    for (std::int64_t i = 0; i < tensor.size(); ++i) {
      EXPECT_EQ(tensor.at(i / 7, i % 7), 0);
    }
  }
}

TEST(HostTensor, MayBeEmptyInEitherExtent) {
  const HostTensor none;
  EXPECT_TRUE(none.empty());
  EXPECT_TRUE(none.clone().empty());
  const HostTensor no_rows(Dtype::kBF16, 0, 8);
  EXPECT_EQ(no_rows.to(Dtype::kF32).cols(), 8);
  EXPECT_EQ(HostTensor::zeros(Dtype::kF32, 8, 0).slice_rows(2, 3).rows(), 3);
}

TEST(HostTensor, ClonesAndSlicesAreCopies) {
  HostTensor tensor = counting(4, 3);
  const HostTensor copy = tensor.clone();
  const HostTensor slice = tensor.slice_rows(1, 2);
  tensor.f32().row(1)[0] = -1;
  EXPECT_EQ(copy.at(1, 0), 3.001F);
  EXPECT_EQ(slice.at(0, 0), 3.001F);
  EXPECT_EQ(slice.rows(), 2);
  EXPECT_EQ(slice.at(1, 2), 8.001F);
}

TEST(HostTensor, ConversionRoundsEveryElementToStorage) {
  const HostTensor tensor = counting(5, 9);
  const HostTensor rounded = tensor.to(Dtype::kBF16);
  const HostTensor widened = rounded.to(Dtype::kF32);
  EXPECT_EQ(rounded.dtype(), Dtype::kBF16);
  for (std::int64_t i = 0; i < tensor.size(); ++i) {
    const float expected = round_to(Dtype::kBF16, tensor.at(i / 9, i % 9));
    EXPECT_EQ(rounded.at(i / 9, i % 9), expected);
    EXPECT_EQ(widened.at(i / 9, i % 9), expected);
  }
  EXPECT_NE(std::as_const(tensor).to(Dtype::kF32).data(), tensor.data());
}

TEST(HostTensor, RefusesExtentsThatCannotBe) {
  EXPECT_EQ(test::error_text<InvalidArgument>([] { HostTensor(Dtype::kF32, -1, 4); }),
            "rows = -1: a tensor's extent must not be negative");
  EXPECT_EQ(test::error_text<InvalidArgument>([] { HostTensor(Dtype::kF32, 4, -7); }),
            "cols = -7: a tensor's extent must not be negative");
  constexpr auto kHuge = std::int64_t{1} << 62;
  EXPECT_EQ(test::error_text<InvalidArgument>([] { HostTensor(Dtype::kF32, kHuge, 1); }),
            "rows x cols = 4611686018427387904 x 1: the tensor's size overflows 64 bits");
}

TEST(HostTensor, SaysNeedAndHaveWhenMemoryIsTooLittle) {
  const auto text =
      test::error_text<OutOfMemory>([] { HostTensor(Dtype::kBF16, std::int64_t{1} << 40, 1024); });
  EXPECT_NE(text.find("host tensor needs 2251799813685248 bytes (2097152.00 GiB), "), std::string::npos)
      << text;
  EXPECT_NE(text.find(" are available"), std::string::npos) << text;
}

TEST(HostMemory, AvailableMemoryIsPlausibleAndAsksAreChecked) {
  const auto available = available_host_memory_bytes();
  EXPECT_GT(available, std::uint64_t{1} << 20);
  EXPECT_LT(available, std::uint64_t{1} << 50);
  EXPECT_NO_THROW(require_host_memory("a test", 1));
  const auto text = test::error_text<OutOfMemory>([] { require_host_memory("a test", 0x1p60); });
  EXPECT_EQ(text.rfind("a test needs 1152921504606846976 bytes", 0), 0U) << text;
}

TEST(HostTensor, RefusesViewsOfAnotherTypeAndElementsOutside) {
  HostTensor tensor = HostTensor::zeros(Dtype::kBF16, 2, 2);
  EXPECT_NE(test::error_text<InternalError>([&] { tensor.f32(); }).find("fp32 view of a bf16 tensor"),
            std::string::npos);
  EXPECT_NE(
      test::error_text<InternalError>([&] { tensor.at(2, 0); }).find("element [2, 0] of a [2, 2] tensor"),
      std::string::npos);
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { tensor.slice_rows(1, 2); }),
            "rows = [1, 1 + 2): must lie within the tensor's 2 rows");
}

}  // namespace
}  // namespace moescope
