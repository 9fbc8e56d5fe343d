#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/ranks/placement.hpp"
#include "core/ranks/rank_transport.hpp"
#include "core/schedule/schedule.hpp"

/// What rank 0 tells a rank of a layer: host data, no device needed.
namespace moescope::cuda {

/// The experts of the strips that a rank computes. Rows and columns of the grid are stored apart, each
/// strip's experts together: an expert that lies in both is there twice, as the placement says.
struct RankWeights {
  std::vector<std::int32_t> rows;  ///< own rows of the grid, ascending
  std::vector<std::int32_t> cols;
  HostTensor w_in_rows;  ///< [own rows * Nc, d]
  HostTensor w_out_rows;
  HostTensor w_in_cols;  ///< [own columns * Nr, d]
  HostTensor w_out_cols;
  std::optional<SharedMlpWeights> shared;
};
/// Of the rank, copied from the layer's. Placement: one with strips.
RankWeights rank_weights(const LayerInputs& inputs, const ExpertPlacement& placement, std::int64_t rank);

/// Which rows and columns the rank has, alone.
RankWeights rank_strips(const ExpertPlacement& placement, std::int64_t rank);

struct RankTask {
  std::int64_t id = 0;
  LayerShape shape;  ///< of the whole layer
  ScheduleOptions options;
  std::vector<std::int32_t> strip_owner;  ///< [Nr+Nc]: rank, or kEveryRank
  HostTensor hidden_states;               ///< of the rank's home tokens
  RouterWeights router;                   ///< of the workload: layers of one set of experts may differ in it
  std::int64_t weights_id = 0;            ///< the same: weights are those of the task before
  std::shared_ptr<const RankWeights> weights;
};

/// `with_weights`: else the receiver still has those of weights_id.
Message pack(const RankTask& task, bool with_weights);
/// The inverse; `last`: the weights of the task before. Throws InternalError for what is no task.
RankTask unpack_task(const Message& message, const std::shared_ptr<const RankWeights>& last);

Message pack(const HostTensor& tensor);
HostTensor unpack_tensor(const Message& message);
Message pack(const Routing& routing);
Routing unpack_routing(const Message& message);

}  // namespace moescope::cuda
