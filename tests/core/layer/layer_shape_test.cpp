#include "core/layer/layer_shape.hpp"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

std::string refusal(const LayerShape& shape) {
  return test::error_text<InvalidArgument>([&] { shape.validate(); });
}

TEST(LayerShape, LabelsSquareAndOtherGrids) {
  EXPECT_EQ(test::make_shape(256, 128, 32, 32, 8).label(), "L256_d128_N1024_K8");
  EXPECT_EQ(test::make_shape(1, 8, 48, 16, 768).label(), "L1_d8_N48x16_K768");
}

TEST(LayerShape, AcceptsTheAwkwardShapesOfTests) {
  for (const auto& shape : test::routing_shapes()) {
    EXPECT_NO_THROW(shape.validate()) << shape.label();
  }
}

TEST(LayerShape, NamesTheFirstFieldThatCannotWork) {
  EXPECT_EQ(refusal(test::make_shape(0, 8, 4, 4, 1)), "num_tokens = 0: must be at least 1");
  EXPECT_EQ(refusal(test::make_shape(1, -8, 4, 4, 1)), "hidden_size = -8: must be at least 1");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 0, 4, 1)), "grid_rows = 0: must be at least 1");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 4, 0, 1)), "grid_cols = 0: must be at least 1");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 4, 4, 0)), "top_k = 0: must be at least 1");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 4, 4, 17)),
            "top_k = 17: must not exceed num_experts = 16 (4 x 4)");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 4, 4, 1, -2)),
            "shared_size = -2: must not be negative (0 = no shared MLP)");
}

TEST(LayerShape, RefusesWhatWouldOverflow) {
  constexpr auto kTwoTo31 = std::int64_t{1} << 31;
  EXPECT_EQ(refusal(test::make_shape(kTwoTo31, 8, 4, 4, 1)), "num_tokens = 2147483648: must be below 2^31");
  EXPECT_EQ(refusal(test::make_shape(1, 8, 1 << 16, 1 << 15, 1)),
            "num_experts = 2147483648: grid_rows * grid_cols = 65536 * 32768 must be below 2^31");
  EXPECT_EQ(refusal(test::make_shape(1, 8, INT64_MAX, INT64_MAX, 1)),
            "grid_rows = 9223372036854775807: must be below 2^31");
  // Extents just below 2^31: each fits, the products still do.
  EXPECT_NO_THROW(test::make_shape(kTwoTo31 - 1, 1, kTwoTo31 - 1, 1, 1).validate());
}

TEST(LayerShape, OptionNamesRoundTrip) {
  for (const auto activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    EXPECT_EQ(parse_activation(to_string(activation)), activation);
  }
  for (const auto mode : {GateMode::kSoftmax, GateMode::kProbability, GateMode::kRelu}) {
    EXPECT_EQ(parse_gate_mode(to_string(mode)), mode);
  }
  EXPECT_EQ(test::error_text<InvalidArgument>([] { parse_activation("tanh"); }),
            "activation = tanh: must be silu, gelu or relu");
  EXPECT_EQ(test::error_text<InvalidArgument>([] { parse_gate_mode(""); }),
            "gate_mode = : must be softmax, probability or relu");
}

TEST(Presets, AreValidAndNamedOnceWithASource) {
  std::set<std::string_view> names;
  for (const auto& preset : presets()) {
    EXPECT_NO_THROW(preset.shape.validate()) << preset.name;
    EXPECT_TRUE(names.insert(preset.name).second) << preset.name;
    EXPECT_FALSE(preset.source.empty()) << preset.name;
    EXPECT_EQ(&find_preset(preset.name), &preset);
  }
}

TEST(Presets, HoldBothSweepsOfTableA) {
  const auto check = [](std::int64_t num_tokens, std::int64_t top_k) {
    const auto& shape =
        find_preset("table-a-" + std::to_string(num_tokens) + "-" + std::to_string(top_k)).shape;
    EXPECT_EQ(shape.num_tokens, num_tokens);
    EXPECT_EQ(shape.top_k, top_k);
    EXPECT_EQ(shape.num_experts(), 102400);
    EXPECT_EQ(shape.hidden_size, 1024);
    EXPECT_EQ(shape.shared_size, 1024);
    EXPECT_EQ(shape.dtype, Dtype::kBF16);
  };
  for (const std::int64_t top_k : {512, 1024, 2048, 4096}) {
    check(1024, top_k);
  }
  for (const std::int64_t num_tokens : {2048, 4096, 8192, 16384}) {
    check(num_tokens, 512);
  }
  for (const std::int64_t width : {768, 1024, 1536, 2048}) {
    EXPECT_EQ(find_preset("table-b-" + std::to_string(width)).shape.hidden_size, width);
  }
}

TEST(Presets, UnknownNamesGetTheListOfKnownOnes) {
  const auto text = test::error_text<InvalidArgument>([] { find_preset("table-z"); });
  EXPECT_EQ(text.rfind("preset = table-z: must be one of small, table-a, table-a-1024-512, ", 0), 0U) << text;
  EXPECT_NE(text.find(", million, tiny"), std::string::npos) << text;
}

}  // namespace
}  // namespace moescope
