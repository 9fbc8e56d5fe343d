#include "core/results/point.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include "core/results/result.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

/// `point` with the one field `key` changed.
Point changed(Point point, std::string_view key) {
  for_each_field(point, [&](const PointField& field, auto& value) {
    if (key != field.key) {
      return;
    }
    using T = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_same_v<T, std::string>) {
      value += "x";
    } else if constexpr (std::is_arithmetic_v<T>) {
      value += 1;
    } else {
      value = value.value_or(1000) + 1;
    }
  });
  return point;
}

std::vector<PointField> fields() {
  std::vector<PointField> all;
  const Point point;
  for_each_field(point, [&](const PointField& field, const auto&) { all.push_back(field); });
  return all;
}

TEST(Point, IsAnotherWhenAnyFieldIs) {
  const Point point;
  EXPECT_TRUE(same_point(point, point, kResultSchemaVersion));
  for (const PointField& field : fields()) {
    EXPECT_FALSE(same_point(point, changed(point, field.key), kResultSchemaVersion)) << field.key;
  }
}

TEST(Point, SaysNothingByFieldsThatAVersionDidNotHave) {
  const Point point;
  for (const PointField& field : fields()) {
    for (int version = 1; version <= kResultSchemaVersion; ++version) {
      EXPECT_EQ(same_point(point, changed(point, field.key), version), version < field.known_since)
          << field.key;
    }
  }
}

TEST(Point, OfOneLayerWhateverTheScheduleAndTheStateOfTheCache) {
  const Point point;
  for (const PointField& field : fields()) {
    EXPECT_EQ(
        layer_key(point, kResultSchemaVersion) == layer_key(changed(point, field.key), kResultSchemaVersion),
        field.part != PointPart::kLayer)
        << field.key;
  }
}

TEST(Point, NamesCannotRunIntoEachOther) {
  Point a;
  a.activation = "silu|7:softmax";
  a.gates = "";
  Point b;
  b.activation = "silu";
  b.gates = "7:softmax|";
  EXPECT_FALSE(same_point(a, b, kResultSchemaVersion));
}

TEST(Point, HasTheOptionsThatItsScheduleHas) {
  Point point;
  point.set_schedule({.kind = ScheduleKind::kTokenCentric, .group_size = 32, .tile_tokens = 64});
  EXPECT_EQ(point.group_size, std::nullopt);
  EXPECT_EQ(point.tile_tokens, std::nullopt);
  point.set_schedule({.kind = ScheduleKind::kExpertCentric, .group_size = 32, .tile_tokens = 64});
  EXPECT_EQ(point.group_size, 32);
  EXPECT_EQ(point.tile_tokens, std::nullopt);
  point.set_schedule(
      {.kind = ScheduleKind::kStaircase, .group_size = 32, .deterministic = false, .tile_tokens = 64});
  EXPECT_EQ(point.schedule, "staircase:atomics");
  EXPECT_EQ(point.group_size, 32);
  EXPECT_EQ(point.tile_tokens, 64);
}

TEST(Point, OfABaselineHasItsOwnExtents) {
  const Point experts =
      layer_point(find_system_preset(System::kDeepSeekMoe, "small").shape, "cpu", "gaussian:1", 3);
  EXPECT_EQ(experts.system, "deepseekmoe");
  EXPECT_TRUE(experts.expert_size.has_value());
  EXPECT_EQ(experts.heads, std::nullopt);
  EXPECT_EQ(experts.grid_rows, 1);
  const Point keys = layer_point(find_system_preset(System::kPkm, "small").shape, "cpu", "gaussian:1", 3);
  EXPECT_EQ(keys.activation, "none");
  EXPECT_TRUE(keys.heads.has_value() && keys.key_size.has_value());
  EXPECT_EQ(keys.expert_size, std::nullopt);
  const Point mlp = layer_point(find_system_preset(System::kDenseMlp, "small").shape, "cpu", "gaussian:1", 3);
  EXPECT_EQ(mlp.gates, "none");
}

TEST(PointRequest, NamesEveryFieldOnce) {
  std::set<std::string> keys;
  std::set<std::string> options;
  PointRequest request;
  for_each_request_field(request, [&](const RequestField& field, auto& value) {
    EXPECT_TRUE(keys.insert(field.key).second) << field.key;
    EXPECT_TRUE(options.insert(field.options).second) << field.options;
    using T = std::remove_cvref_t<decltype(value)>;
    if constexpr (!std::is_same_v<T, std::string>) {
      EXPECT_GE(field.maximum, field.minimum) << field.key;
    }
  });
  EXPECT_GT(keys.size(), 10U);
}

}  // namespace
}  // namespace moescope
