#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/ranks/exchange_plan.hpp"
#include "core/ranks/rank_transport.hpp"

/// What ranks say to each other, byte by byte as ExchangeSizes counts it.
namespace moescope::reference {

/// Tokens that came to a rank, in order of the ranks they came from: a layer of its own, with its routing.
struct ReceivedTokens {
  std::vector<std::int64_t> offsets;  ///< [P+1]: rows from each rank
  LayerInputs inputs;                 ///< hidden states of all rows; experts are the layer's
  Routing routing;                    ///< a row may have no pairs
};

/// What home `from` sends to rank `to`: of each of its tokens that go there (all, in a gather) the number of
/// pairs, in a dispatch before it the token's number, then the row of X, then experts and gates of the pairs.
Message pack_tokens(const LayerInputs& inputs, const Routing& routing, const ExchangePlan& plan,
                    std::span<const std::int32_t> own_tokens, std::int64_t from, std::int64_t to);
/// The inverse on rank `rank`, of messages from all ranks. Throws RankFailure for a message that is no such
/// thing: a row that is cut short, an expert out of range or twice, or one that the rank does not hold.
ReceivedTokens unpack_tokens(const LayerInputs& inputs, const ExpertPlacement& placement, Exchange exchange,
                             std::span<const Message> messages, std::int64_t rank);

/// Rows [begin, end) of partial sums, fp32, rounded to `dtype`.
Message pack_sums(const HostTensor& sums, std::int64_t begin, std::int64_t end, Dtype dtype);
/// Adds the rows of a message to rows `tokens` of y [L,d]. Throws RankFailure unless it has just these rows.
void add_sums(const Message& message, Dtype dtype, std::span<const std::int32_t> tokens, std::int64_t from,
              std::int64_t rank, HostTensor& y);

}  // namespace moescope::reference
