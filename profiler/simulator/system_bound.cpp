#include "profiler/simulator/system_bound.hpp"

#include <algorithm>
#include <cstdint>

#include "core/systems/system_cost.hpp"

namespace moescope {
namespace {

/// Bytes and FLOP of one stage.
struct StageWork {
  double hbm_read = 0;
  double hbm_write = 0;
  double l2 = 0;
  double tensor_flop = 0;
  double fp32_flop = 0;

  double bound_s(const DeviceSpec& device) const {
    const double hbm_s = hbm_read / device.hbm_read_bytes_per_s + hbm_write / device.hbm_write_bytes_per_s;
    return device.launch_s +
           std::max({hbm_s, l2 / device.l2_bytes_per_s, tensor_flop / device.tensor_bf16_flop_per_s,
                     fp32_flop / device.fp32_flop_per_s});
  }
};

void close(StageBounds& bounds) {
  double sum = 0;
  for (const auto& bound : bounds) {
    sum += bound.second;
  }
  bounds.emplace_back(Stage::kLayer, sum);
}

/// Every expert as often as any other, as far as that goes.
Routing even_routing(const SystemShape& shape) {
  Routing routing;
  const LayerShape row = shape.row_shape();
  routing.num_tokens = shape.num_queries();
  routing.grid_rows = row.grid_rows;
  routing.grid_cols = row.grid_cols;
  routing.token_offsets.push_back(0);
  const std::int64_t each = shape.has_routing() ? shape.top_k_per_query() : 0;
  const std::int64_t experts = routing.num_experts();
  for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
    const auto begin = routing.expert_ids.size();
    for (std::int64_t k = 0; k < each; ++k) {
      routing.expert_ids.push_back(static_cast<std::int32_t>((query * each + k) % experts));
    }
    std::sort(routing.expert_ids.begin() + static_cast<std::ptrdiff_t>(begin), routing.expert_ids.end());
    routing.token_offsets.push_back(routing.num_pairs());
  }
  routing.gates.assign(routing.expert_ids.size(), 1.0F);
  return routing;
}

}  // namespace

StageBounds system_bound(const SystemShape& shape, const DeviceSpec& device) {
  const AnalyticCost cost = analytic_cost(shape, even_routing(shape));
  StageBounds bounds;
  for (const Stage stage : system_stages(shape.system)) {
    const bool gathers =
        shape.has_product_keys() && (stage == Stage::kExperts || stage == Stage::kExpertCombine);
    const auto flop = static_cast<double>(cost.useful_flop(stage));
    StageWork work;
    work.hbm_read = static_cast<double>(cost.bytes(stage, MemoryLevel::kHbm, Access::kRead));
    work.hbm_write = static_cast<double>(cost.bytes(stage, MemoryLevel::kHbm, Access::kWrite));
    work.l2 = static_cast<double>(cost.bytes(stage, MemoryLevel::kL2));
    (gathers ? work.fp32_flop : work.tensor_flop) = flop;
    bounds.emplace_back(stage, work.bound_s(device));
  }
  close(bounds);
  return bounds;
}

StageBounds full_router_bound(const LayerShape& shape, const DeviceSpec& device) {
  const auto tokens = static_cast<double>(shape.num_tokens);
  const auto width = static_cast<double>(shape.hidden_size);
  const auto experts = static_cast<double>(shape.num_experts());
  const auto element = static_cast<double>(dtype_bytes(shape.dtype));
  const double logits = tokens * experts * sizeof(float);
  StageWork project;
  project.hbm_read = (tokens + experts) * width * element;  // X, router
  project.hbm_write = logits;
  project.l2 = project.hbm_read + project.hbm_write;
  project.tensor_flop = 2 * tokens * width * experts;
  StageWork select;
  select.hbm_read = logits;
  select.hbm_write = static_cast<double>(shape.num_pairs()) * (sizeof(std::int32_t) + sizeof(float));
  select.l2 = select.hbm_read + select.hbm_write;
  StageBounds bounds = {{Stage::kRouterProject, project.bound_s(device)},
                        {Stage::kRouterSelect, select.bound_s(device)}};
  close(bounds);
  return bounds;
}

}  // namespace moescope
