#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/tensor.hpp"

namespace moescope {

/// Cartesian product router, batch norm already folded in: logits = hidden_states @ row^T + row_bias.
struct RouterWeights {
  HostTensor row;               ///< [Nr, d], storage dtype
  HostTensor col;               ///< [Nc, d], storage dtype
  std::vector<float> row_bias;  ///< [Nr] or empty (no bias)
  std::vector<float> col_bias;  ///< [Nc] or empty
};

/// shared_mlp(x) = (act(x gate^T) * (x up^T)) down^T; matrices are [out, in] as torch.nn.Linear keeps them.
struct SharedMlpWeights {
  HostTensor gate;  ///< [shared_size, d]
  HostTensor up;    ///< [shared_size, d]
  HostTensor down;  ///< [d, shared_size]
};

/// Everything of a layer that does not depend on the routing; shared between workloads because it is large.
struct ExpertWeights {
  HostTensor w_in;   ///< W [N, d]
  HostTensor w_out;  ///< V [N, d]
  std::optional<SharedMlpWeights> shared;
};

/// One layer with its input batch: what every backend consumes. Tensors are in shape.dtype, rounded once,
/// here.
struct LayerInputs {
  LayerShape shape;
  HostTensor hidden_states;  ///< X [L, d]
  RouterWeights router;      ///< empty tensors when fixed_routing is set
  std::shared_ptr<const ExpertWeights> experts;
  std::optional<Routing> fixed_routing;  ///< recorded or grid-less routing: the router stages are skipped
  std::string workload;                  ///< the spec it was made from, as in rows
  std::uint64_t seed = 0;

  /// Throws InvalidArgument naming the tensor whose extents or dtype do not fit `shape`.
  void validate() const;
};

/// Throws InvalidArgument("fixed_routing", ...) unless it is the routing of a layer of this shape, top_k
/// experts for every token.
void require_fixed_routing(const Routing& routing, const LayerShape& shape);

}  // namespace moescope
