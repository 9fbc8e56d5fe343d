#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layer/routing.hpp"

/// How the L x N matrix of dense_masked is cut, in both directions.
namespace moescope::reference {

inline constexpr std::int64_t kTokenBlock = 128;
/// fp32 rows of W or V per chunk: stays in a core's share of L3.
inline constexpr std::int64_t kWeightTileBytes = 4 << 20;

inline std::int64_t chunk_experts(std::int64_t hidden_size) {
  return std::clamp<std::int64_t>(kWeightTileBytes / (hidden_size * dtype_bytes(Dtype::kF32)), 1, 4096);
}

/// Rows [token_begin, token_end) and columns [expert_begin, expert_end) of the L x N matrix.
struct DenseBlock {
  std::int64_t token_begin, token_end, expert_begin, expert_end;
  std::int64_t tokens() const { return token_end - token_begin; }
  std::int64_t experts() const { return expert_end - expert_begin; }
};

/// body(row, col, pair) for the selected pairs inside the block.
template <class Body>
void for_each_pair(const Routing& routing, const DenseBlock& block, const Body& body) {
  for (std::int64_t token = block.token_begin; token < block.token_end; ++token) {
    const auto ids = routing.ids_of(token);
    const auto begin = std::lower_bound(ids.begin(), ids.end(), block.expert_begin);
    for (auto id = begin; id != ids.end() && *id < block.expert_end; ++id) {
      body(token - block.token_begin, *id - block.expert_begin,
           static_cast<std::size_t>(routing.token_offsets[static_cast<std::size_t>(token)] +
                                    (id - ids.begin())));
    }
  }
}

}  // namespace moescope::reference
