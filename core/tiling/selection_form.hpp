#pragma once

#include <algorithm>
#include <cstdint>

#include "core/layer/layer_shape.hpp"

/// By how many warps the selection kernels serve a token, for them and for whoever models them: few tokens
/// are bound by one token's latency and get eight, many by instructions, of which one warp wastes fewest.
namespace moescope {

/// router_select.cu: pairs written row by row by eight warps (router_select_rows.cuh), else from lists by
/// one. Two blocks of eight warps run on each multiprocessor of an H100, if the pairs (8 bytes each) fit its
/// shared memory; at 512 tokens the lists are as fast.
constexpr bool csr_by_eight_warps(const LayerShape& shape) {
  return shape.num_tokens <= 264 && shape.top_k <= 4096;
}

/// router_select_strips.cu: all blocks of few tokens run at once, four on each multiprocessor of an H100, or
/// two where a side's values take more than 10 registers a lane.
constexpr bool strips_by_eight_warps(const LayerShape& shape) {
  constexpr std::int64_t kSideInTenRegisters = 320;
  return shape.num_tokens <= (std::max(shape.grid_rows, shape.grid_cols) <= kSideInTenRegisters ? 528 : 264);
}

}  // namespace moescope
