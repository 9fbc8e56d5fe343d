#include "experiments/points/check_points.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"

namespace moescope {
namespace {

constexpr const char* kOneHot = "one_hot_expert";
/// Philox stream of the routings made here; apart from those of core's workloads.
constexpr std::uint32_t kOneHotStream = 0x0ec4;

/// A grid of so many experts is checked for its width, in the backward with vectors of kNarrow.
constexpr std::int64_t kWideGrid = 1 << 20;
constexpr std::int64_t kNarrow = 16;

CheckPoint make_point(const char* workload, const LayerShape& shape) {
  if (std::string_view(workload) == kOneHot) {
    return {{WorkloadSpec::parse("uniform"), kOneHot}, shape, true};
  }
  return {{WorkloadSpec::parse(workload), workload}, shape, false};
}

/// Expert 0 for every token, and K - 1 distinct others by Floyd's sampling (Bentley and Floyd, CACM 30(9),
/// 1987).
Routing one_hot_routing(const LayerShape& shape, std::uint64_t seed) {
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets.push_back(0);
  const Philox random(seed, kOneHotStream);
  const std::int64_t others = shape.num_experts() - 1;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    std::vector<std::int32_t> ids = {0};
    for (std::int64_t j = others - shape.top_k + 1; j < others; ++j) {
      const double u = random.uniform(static_cast<std::uint64_t>(token * shape.num_experts() + j));
      const auto candidate =
          static_cast<std::int32_t>(1 + static_cast<std::int64_t>(u * static_cast<double>(j + 1)));
      ids.push_back(std::ranges::find(ids, candidate) == ids.end() ? candidate
                                                                   : static_cast<std::int32_t>(j + 1));
    }
    std::ranges::sort(ids);
    routing.expert_ids.insert(routing.expert_ids.end(), ids.begin(), ids.end());
    routing.token_offsets.push_back(routing.num_pairs());
  }
  routing.gates.assign(routing.expert_ids.size(), 1.0F / static_cast<float>(shape.top_k));
  return routing;
}

}  // namespace

std::vector<CheckPoint> check_points(bool full) {
  std::vector<CheckPoint> points;
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const auto add = [&](const char* workload, std::int64_t L, std::int64_t d, std::int64_t rows,
                         std::int64_t cols, std::int64_t K, std::int64_t shared = 0) {
      points.push_back(make_point(workload, LayerShape{L, d, rows, cols, K, shared, dtype}));
    };
    add("gaussian:1", 1, 64, 16, 16, 8, 32);
    add("gaussian:1", 3, 64, 16, 16, 8);
    add("gaussian:1", 64, 64, 16, 16, 1);
    add("gaussian:1", 32, 64, 8, 8, 64);  // K = N
    add("gaussian:1", 96, 96, 48, 16, 24);
    add("zipf:1.5", 96, 96, 16, 48, 24, 40);
    add("gaussian:1", 50, 8, 16, 16, 8, 8);
    add("zipf:1", 200, 1000, 24, 24, 16);
    add("uniform", 100, 96, 16, 16, 12);
    add("clustered:4,0.9", 128, 64, 32, 32, 16);
    add("hot:1,1", 100, 64, 16, 16, 1);  // every token on one expert
    add(kOneHot, 100, 64, 16, 16, 12);
  }
  points.push_back(make_point("gaussian:1", LayerShape{8, 256, 1024, 1024, 512, 0, Dtype::kBF16}));
  // Gates that add up to some 5e-5, scores that differ in their last digits.
  points.push_back(make_point("gaussian:0.01", LayerShape{20, 64, 400, 400, 8, 0, Dtype::kBF16,
                                                          Activation::kGelu, GateMode::kProbability}));
  NamedWorkload recorded = recorded_layer();
  CommonOptions options;
  options.num_tokens = 512;
  const LayerShape recorded_shape = resolve_shape(options, recorded.spec);
  points.push_back({std::move(recorded), recorded_shape, false});
  if (full) {
    for (const char* preset : {"table-a-1024-512", "table-a-1024-4096", "table-a-4096-512"}) {
      for (const char* workload : {"gaussian:1", "zipf:1"}) {
        points.push_back(make_point(workload, find_preset(preset).shape));
      }
    }
  }
  return points;
}

std::vector<CheckPoint> training_points(std::vector<CheckPoint> points) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    points.push_back(make_point("drift:1,8", LayerShape{96, 64, 16, 16, 12, 24, dtype}));
  }
  std::vector<CheckPoint> all;
  for (CheckPoint& point : points) {
    if (point.shape.num_experts() >= kWideGrid) {
      point.shape.hidden_size = kNarrow;  // gradients are as large as all weights, several times over
    }
    const auto family = point.workload.spec.family;
    // A routing that is given has gates of its own; a recorded layer was trained with one kind.
    const bool any_gates = !point.one_hot && family != WorkloadSpec::Family::kUniform &&
                           family != WorkloadSpec::Family::kTrace &&
                           family != WorkloadSpec::Family::kSnapshot;
    CheckPoint other = point;
    other.shape.gate_mode =
        point.shape.gate_mode == GateMode::kSoftmax ? GateMode::kProbability : GateMode::kSoftmax;
    all.push_back(std::move(point));
    if (any_gates) {
      all.push_back(std::move(other));
    }
  }
  return all;
}

LayerInputs make_check_inputs(const CheckPoint& point, std::uint64_t seed, const LayerUse& use) {
  LayerInputs inputs = make_inputs(point.workload, point.shape, seed, use);
  if (point.one_hot) {
    inputs.fixed_routing = one_hot_routing(point.shape, seed);
    inputs.validate();
  }
  return inputs;
}

}  // namespace moescope
