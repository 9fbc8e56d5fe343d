#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/ranks/exchange_plan.hpp"

/// What of a batch one rank sees: as routing of its own, which the simulator of one device takes.
namespace moescope {

/// Rows `tokens` of a routing, in this order.
Routing take_tokens(const Routing& routing, std::span<const std::int32_t> tokens);

/// What rank `rank` computes: the rows that it gets, home by home and ascending, with the pairs that are its
/// own. In a gather all tokens of the batch, also those of which it computes nothing.
Routing rank_routing(const ExchangePlan& plan, const Routing& routing, std::int64_t rank);

/// Tokens that each rank is home of, ascending: [P][].
std::vector<std::vector<std::int32_t>> home_tokens(std::span<const std::int32_t> home, std::int64_t ranks);

/// Chunk `chunk` of `chunks`: of each home the tokens that are its share, dealt out in order. `home` of the
/// chunk's tokens goes to `chunk_home`.
Routing chunk_routing(const Routing& routing, std::span<const std::int32_t> home, const RankGroup& group,
                      std::int64_t chunk, std::int64_t chunks, std::vector<std::int32_t>& chunk_home);

}  // namespace moescope
