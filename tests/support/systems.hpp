#pragma once

#include <array>

#include "core/systems/system.hpp"

/// Small baseline layers for tests.
namespace moescope::test {

inline constexpr std::array kBaselines = {System::kDenseMlp, System::kGShard, System::kDeepSeekMoe,
                                          System::kPkm, System::kPeer};

/// A shape of `system` in fp32 with narrow experts and keys, gates as the system publishes them. `heads` and
/// `top_k` count for systems that have them.
inline SystemShape system_shape(System system, std::int64_t num_tokens, std::int64_t hidden_size,
                                std::int64_t num_experts, std::int64_t top_k, std::int64_t heads = 1) {
  SystemShape shape;
  shape.system = system;
  shape.num_tokens = num_tokens;
  shape.hidden_size = hidden_size;
  shape.dtype = Dtype::kF32;
  if (shape.has_routing()) {
    shape.num_experts = num_experts;
    shape.top_k = top_k;
  }
  if (shape.has_ffn_experts()) {
    shape.expert_size = 12;
  }
  if (shape.has_product_keys()) {
    shape.heads = heads;
    shape.key_size = 6;
  }
  if (system == System::kDenseMlp || system == System::kDeepSeekMoe) {
    shape.shared_size = 20;
  }
  if (system == System::kDeepSeekMoe) {
    shape.gate_mode = GateMode::kProbability;
  }
  if (system == System::kPeer) {
    shape.activation = Activation::kGelu;
  }
  return shape;
}

/// One of each kind, with extents that are no multiples of anything.
inline SystemShape small_system(System system, Dtype dtype) {
  SystemShape shape = system_shape(system, 37, 40, 49, 6, 3);
  shape.dtype = dtype;
  return shape;
}

}  // namespace moescope::test
