#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/ranks/exchange_plan.hpp"
#include "core/ranks/placement_use.hpp"
#include "core/results/point.hpp"

namespace moescope {

/// Recorded or made routing of one layer, and what it takes to count its bytes.
struct RoutedBatch {
  std::string name;               ///< of the workload, short enough for a table
  Point point;                    ///< layer, batch and routing, as rows carry them
  Routing routing;                ///< a row for each token, whatever the router's heads
  std::int64_t hidden_size = 0;   ///< [d]; 0: not known, and no bytes are counted
  std::int64_t expert_bytes = 0;  ///< weights of one expert; 0: not known
  Dtype dtype = Dtype::kBF16;
};

/// A routing with several rows for a token (a head each) as one with the union of each token's experts; the
/// gates of an expert that two heads selected are added. `heads` divides the rows.
Routing merge_heads(const Routing& routing, std::int64_t heads);
/// Tokens [begin, end) alone.
Routing slice_tokens(const Routing& routing, std::int64_t begin, std::int64_t end);

/// One placement judged on one batch.
struct JudgedPlacement {
  PlacementSpec spec;
  ExpertPlacement placement;
  PlacementUse use;               ///< on the judged tokens
  std::vector<double> parts;      ///< load_max_over_mean on each quarter of the judged tokens
  double seen_max_over_mean = 0;  ///< on the tokens that it was made from; as `use` where it counts none
  LinkBytes gather;               ///< of the judged tokens; empty where d is not known
  LinkBytes dispatch;
  std::string reason;  ///< not empty: it could not be made, and why
};

/// All placements asked for on one batch. The first half of the tokens is seen by placements that go by
/// counts, the second half judges all of them.
struct PlacementStudy {
  RoutedBatch batch;
  RankGroup group;
  std::int64_t seen_tokens = 0;
  std::int64_t judged_tokens = 0;
  std::vector<JudgedPlacement> placements;

  const JudgedPlacement* find(PlacementKind kind) const;
};
/// Throws InvalidArgument for a group that does not fit, or fewer than two tokens. A placement that does not
/// fit the grid has its reason.
PlacementStudy study_placements(RoutedBatch batch, const RankGroup& group,
                                std::span<const PlacementSpec> specs);

/// Whether copies of experts pay on a batch.
enum class CopiesVerdict : std::uint8_t { kPay, kDoNotPay, kUndecided };
/// Copies against the best placement without: by pairs of the busiest rank, on tokens that none has seen.
/// They pay when that falls by 2 % or more and falls in every quarter of the tokens; they do not when it
/// falls by less. Needs a placement of kind eplb, and one of lpt, linear, round_robin or clustered beside it.
struct CopiesAnswer {
  CopiesVerdict verdict = CopiesVerdict::kUndecided;
  const JudgedPlacement* with = nullptr;     ///< the best with copies
  const JudgedPlacement* without = nullptr;  ///< the best without
  double saved = 0;    ///< part of the busiest rank's pairs, negative when there are more
  double ceiling = 0;  ///< what perfect balance would save
  double memory = 0;   ///< more experts on a rank, as a fraction
};
std::optional<CopiesAnswer> copies_answer(const PlacementStudy& study);

}  // namespace moescope
