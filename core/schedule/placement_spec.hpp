#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moescope {

/// Rules by which experts get their ranks. The grid is the router's; that of a flat router has one row.
enum class PlacementKind : std::uint8_t {
  kRows,        ///< whole rows of the grid, neighbours together
  kColumns,     ///< whole columns likewise
  kBlocks,      ///< rectangles of the grid, as near to squares as P allows
  kStrips,      ///< every row and every column has an owner: an expert lies with both
  kLinear,      ///< consecutive expert ids, engines' default
  kRoundRobin,  ///< expert e on rank e mod P
  kLpt,   ///< by counts, the largest first to the rank with the least (Graham 1969), as many experts each
  kEplb,  ///< by counts, copies of the most used experts (DeepSeek's EPLB), then packed like kLpt
  kClustered,  ///< experts that the same tokens use together (Speculative MoE, arXiv 2503.04398)
};

/// A placement as asked for. Its text is what rows and the command line call it.
struct PlacementSpec {
  PlacementKind kind = PlacementKind::kLinear;
  std::int64_t hot_strips = 0;     ///< kStrips: the most used strips lie on every rank; strips+hot:64
  std::int64_t copies = 0;         ///< kEplb: experts beyond N, in all; 0: one for each rank. eplb:8
  std::int64_t expert_groups = 1;  ///< kEplb: consecutive experts that are to share a node. eplb:8,4
  /// kClustered: tokens go to the rank that has most of their experts, too; clustered+tokens. Judged on
  /// routing that is known before it is sent: a bound on what a prediction can do.
  bool token_groups = false;

  /// Whether it is made from counts: then it must be judged on other routing.
  bool by_counts() const;
  std::string text() const;
  /// Inverse of text(). Throws InvalidArgument("placement", text, requirement) with the grammar.
  static PlacementSpec parse(std::string_view text);

  friend bool operator==(const PlacementSpec&, const PlacementSpec&) = default;
};

/// Grammar of all placements, for --help.
std::string placement_help();

}  // namespace moescope
