#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// Row and column logits s_r, s_c of paper eq. 9, bias added, before log-softmax: [L,Nr] and [L,Nc] fp32
/// row-major.
struct RouterLogits {
  HostTensor row;
  HostTensor col;
};

/// The batch's routing: an L x N sparse matrix in CSR form. Pair p = (token, expert_ids[p], gates[p]);
/// the pairs of one token are contiguous and sorted by expert id, ids are distinct within a token.
struct Routing {
  std::int64_t num_tokens = 0;
  std::int64_t grid_rows = 0;
  std::int64_t grid_cols = 0;
  std::vector<std::int64_t> token_offsets;  ///< [L+1], first 0, last M, monotone
  std::vector<std::int32_t> expert_ids;     ///< [M] in [0, N)
  std::vector<float> gates;                 ///< [M]

  std::int64_t num_experts() const { return grid_rows * grid_cols; }
  std::int64_t num_pairs() const { return static_cast<std::int64_t>(expert_ids.size()); }
  std::span<const std::int32_t> ids_of(std::int64_t token) const;
  std::span<const float> gates_of(std::int64_t token) const;

  /// Throws InvalidArgument naming field, coordinate and value: offsets, id range, order, repeats, gates
  /// finite.
  void validate() const;
};

/// Number of pairs per expert, [N].
std::vector<std::int64_t> expert_loads(const Routing& routing);

}  // namespace moescope
