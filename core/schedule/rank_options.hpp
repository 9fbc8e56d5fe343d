#pragma once

#include <cstdint>
#include <string_view>

#include "core/schedule/placement_spec.hpp"
#include "core/schedule/rank_group.hpp"

namespace moescope {

/// How hidden states reach the experts, and sums come back.
enum class Exchange : std::uint8_t {
  kGather,    ///< every rank gets all tokens, and returns a row for each: all-gather and reduce-scatter
  kDispatch,  ///< a rank gets the tokens that it computes pairs of, and returns theirs: all-to-all
};
std::string_view to_string(Exchange exchange);
/// Throws InvalidArgument("exchange", ...).
Exchange parse_exchange(std::string_view text);

/// The ranks that a layer is spread over, and how; part of how it is scheduled.
struct RankOptions {
  RankGroup group;          ///< one rank: nothing else is read
  PlacementSpec placement;  ///< by counts: of the batch that runs
  Exchange exchange = Exchange::kGather;

  bool several() const { return group.ranks > 1; }
  friend bool operator==(const RankOptions&, const RankOptions&) = default;
};

}  // namespace moescope
