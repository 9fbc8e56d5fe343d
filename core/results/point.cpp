#include "core/results/point.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/backend/l2_state.hpp"
#include "core/base/grid_text.hpp"
#include "core/layer/dtype.hpp"
#include "core/layer/training.hpp"
#include "core/schedule/schedule_info.hpp"
#include "core/systems/system_options.hpp"

namespace moescope {
namespace {

/// Length before text: no value can pass for two.
std::string framed(const std::string& text) { return fmt::format("{}:{}", text.size(), text); }
template <class T>
requires std::is_arithmetic_v<T> std::string framed(T value) { return fmt::format("{}", value); }
template <class T>
std::string framed(const std::optional<T>& value) {
  return value ? framed(*value) : "null";
}

const auto& same_as(const PointField&, const auto& value) { return value; }
std::optional<std::int64_t> same_as(const PointField& field, const std::optional<std::int64_t>& value) {
  return value ? value : field.null_means;
}

}  // namespace

void Point::set_shape(const LayerShape& shape) {
  num_tokens = shape.num_tokens;
  hidden_size = shape.hidden_size;
  grid_rows = shape.grid_rows;
  grid_cols = shape.grid_cols;
  top_k = shape.top_k;
  shared_size = shape.shared_size;
  dtype = to_string(shape.dtype);
  activation = to_string(shape.activation);
  gates = to_string(shape.gate_mode);
}

void Point::set_shape(const SystemShape& shape) {
  set_shape(shape.row_shape());
  system = to_string(shape.system);
  if (shape.has_ffn_experts()) {
    expert_size = shape.expert_size;
  }
  if (shape.has_product_keys()) {
    heads = shape.heads;
    key_size = shape.key_size;
  }
  if (!system_has(shape.system, "activation")) {
    activation = "none";
  }
  if (!shape.has_routing()) {
    gates = "none";
  }
}

void Point::set_schedule(const ScheduleOptions& options) {
  const ScheduleInfo& info = schedule_info(options.kind);
  schedule = to_string(options);
  group_size = info.groups ? std::optional(options.group_size) : std::nullopt;
  tile_tokens = info.strips ? std::optional(options.tile_tokens) : std::nullopt;
  if (options.ranks.several()) {
    ranks = options.ranks.group.ranks;
    placement = options.ranks.placement.text();
    exchange = to_string(options.ranks.exchange);
  }
}

namespace {

template <class Shape>
Point point_of(const Shape& shape, std::string_view backend, std::string_view workload, std::uint64_t seed) {
  Point point;
  point.set_shape(shape);
  point.backend = backend;
  point.workload = workload;
  point.seed = seed;
  return point;
}

}  // namespace

Point layer_point(const LayerShape& shape, std::string_view backend, std::string_view workload,
                  std::uint64_t seed) {
  return point_of(shape, backend, workload, seed);
}

Point layer_point(const SystemShape& shape, std::string_view backend, std::string_view workload,
                  std::uint64_t seed) {
  return point_of(shape, backend, workload, seed);
}

std::string point_key(const Point& point, std::initializer_list<PointPart> parts, int version) {
  std::string key;
  for_each_field(point, [&](const PointField& field, const auto& value) {
    if (field.known_since <= version && std::ranges::find(parts, field.part) != parts.end()) {
      key += framed(same_as(field, value));
      key += '|';
    }
  });
  return key;
}

std::string layer_key(const Point& point, int version) {
  return point_key(point, {PointPart::kLayer}, version);
}

bool same_point(const Point& a, const Point& b, int version) {
  const auto whole = [version](const Point& point) {
    return point_key(point, {PointPart::kLayer, PointPart::kSchedule, PointPart::kState}, version);
  };
  return whole(a) == whole(b);
}

namespace detail {

void check_grid(std::string_view text) { parse_grid(text); }
void check_dtype(std::string_view text) { parse_dtype(text); }
void check_activation(std::string_view text) { parse_activation(text); }
void check_gates(std::string_view text) { parse_gate_mode(text); }
void check_l2(std::string_view text) { parse_l2_state(text); }
void check_direction(std::string_view text) { parse_direction(text); }
void check_save(std::string_view text) { parse_save_mode(text); }
void check_gradients(std::string_view text) { parse_gradient_form(text); }
void check_optimizer(std::string_view text) { parse_optimizer_form(text); }

void check_placement(std::string_view text) { PlacementSpec::parse(text); }
void check_exchange(std::string_view text) { parse_exchange(text); }

}  // namespace detail

}  // namespace moescope
