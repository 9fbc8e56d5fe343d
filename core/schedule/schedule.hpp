#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/routing.hpp"
#include "core/schedule/rank_options.hpp"
#include "core/schedule/token_rule.hpp"

namespace moescope {

/// Schedules of the expert stage (DESIGN section 4).
enum class ScheduleKind : std::uint8_t {
  kTokenCentric,
  kExpertCentric,
  kStaircase,
  kDenseMasked,
  kSparseLibrary,
  kAuto,
};

std::string_view to_string(ScheduleKind kind);
/// Throws InvalidArgument("schedule", ...).
ScheduleKind parse_schedule_kind(std::string_view text);
/// Which stages a schedule reports on OmniMoE: true - scores and combine are one stage `experts`; false -
/// expert_scores and expert_combine apart. Of kAuto, which has those of what it resolves to, false.
bool is_fused(ScheduleKind kind);

/// How a token's selected set is cut into strips.
enum class StripRule : std::uint8_t {
  kMinimalCover,  ///< rows and columns by row length: a staircase's fewest strips, at most 2 sqrt(K)
  kRowsOnly,      ///< every row that holds a selected expert: W and V are read once, a token has more strips
};

/// Most tokens of a strip that the staircase kernels take at once (rows of their tiles).
inline constexpr std::int64_t kStripTileTokens = 128;

/// How a schedule is built; part of every row's identity.
struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::kStaircase;
  std::int64_t group_size = 64;  ///< [B] expert_centric: active experts per group; also for explicit lists
  bool deterministic = true;     ///< bit-repeatable combine where the backend offers a faster one without
  StripRule strip_rule = StripRule::kMinimalCover;  ///< staircase: how a token's set is cut into strips
  /// Staircase on strips: most tokens of one tile of a strip, 1 to kStripTileTokens. Nothing else reads it:
  /// not the CPU mirror, nor lists of pairs, nor the analytic counts, which are of whole strips.
  std::int64_t tile_tokens = kStripTileTokens;
  RankOptions ranks = {};  ///< what the layer is spread over; no part of the order of work on a rank
  /// expert_centric over FFN experts (core/systems): which pairs they are given. A schedule itself is built
  /// of the pairs that are left (token_assignment.hpp).
  TokenRule tokens = {};

  friend bool operator==(const ScheduleOptions&, const ScheduleOptions&) = default;
};

/// Throws InvalidArgument("tile_tokens", ...) unless 1 <= tile_tokens <= kStripTileTokens.
void validate_tile_tokens(std::int64_t tile_tokens);

/// The schedule as rows and the command line name it: its kind, or the rule by which FFN experts are given
/// tokens ("padded:1.25"); a staircase has ":rows" behind it where it
/// takes rows alone, and ":atomics" where the bit-repeatable combine was waived. Group size, tile size
/// and ranks are not part of the name.
std::string to_string(const ScheduleOptions& options);
/// Inverse; group size and tile size are the defaults. Throws InvalidArgument("schedule", ...).
ScheduleOptions parse_schedule(std::string_view text);

/// What a work item's experts are.
enum class WorkItemKind : std::uint8_t {
  kToken,      ///< one token, its own experts
  kGroup,      ///< an explicit list of experts, all tokens that use one of them
  kRowStrip,   ///< one grid row: grid_cols experts with consecutive ids
  kColStrip,   ///< one grid column: grid_rows experts, ids spaced by grid_cols
  kAllExperts  ///< every expert for every token; unselected gates are zero
};

/// One unit of work: a set of tokens against a set of experts. Ranges index the arrays of Schedule.
struct WorkItem {
  WorkItemKind kind = WorkItemKind::kToken;
  std::int32_t strip = -1;        ///< row or column index of a strip, else -1
  std::int64_t expert_begin = 0;  ///< kGroup: range of Schedule::experts; else empty
  std::int64_t expert_end = 0;
  std::int64_t token_begin = 0;  ///< range of Schedule::tokens: the item's distinct tokens, ascending
  std::int64_t token_end = 0;

  friend bool operator==(const WorkItem&, const WorkItem&) = default;
};

/// The order of work of the expert stage, as data. Every pair of the routing belongs to exactly one item.
/// Pair p of Routing is named by its CSR index. Ordering: items in execution order; within an item tokens
/// ascending; within an item's token pairs ascending (hence expert id ascending).
struct Schedule {
  ScheduleKind kind = ScheduleKind::kTokenCentric;
  ScheduleOptions options;
  std::vector<WorkItem> items;
  std::vector<std::int32_t> experts;  ///< expert lists of kGroup items
  std::vector<std::int32_t> tokens;   ///< [T] token lists of the items
  std::vector<std::int64_t>
      pair_offsets;  ///< [T+1]: pairs of tokens[t] in its item: sorted_pair_ids[pair_offsets[t]..)
  std::vector<std::int64_t> sorted_pair_ids;  ///< [M] CSR indices in order of execution

  /// Bytes of the arrays above.
  std::int64_t bytes() const;
};

/// The experts of an item as ids: strips are arithmetic sequences, groups are lists, tokens have none
/// (empty).
std::vector<std::int32_t> item_experts(const Schedule& schedule, const WorkItem& item,
                                       const Routing& routing);

/// One item per token, pairs in CSR order (PEER-style; the paper's "w/o ECS").
Schedule build_token_centric(const Routing& routing, const ScheduleOptions& options);
/// Paper section 2.3: active experts by id, groups of B contiguous active experts (the last may be short),
/// tasks sorted by (group, token), one item per group with the group's distinct tokens.
Schedule build_expert_centric(const Routing& routing, const ScheduleOptions& options);
/// Strip cover: each token's set is covered by whole grid rows and columns, the fewest there are when the set
/// is a staircase. Row strips first, then column strips, each ascending. A token whose cover by row length is
/// larger than 2 sqrt(K) (routing without a staircase) goes to explicit groups of `group_size` experts
/// instead; so minimal_strip_cover() may be smaller than what the schedule covers such a token with.
Schedule build_staircase(const Routing& routing, const ScheduleOptions& options);
/// All experts for all tokens, one item.
Schedule build_dense_masked(const Routing& routing, const ScheduleOptions& options);
/// Dispatch on options.kind; kSparseLibrary uses the routing's own CSR (as token_centric). kAuto must be
/// resolved by choose_schedule() (auto_schedule.hpp) first and throws InternalError here.
Schedule build_schedule(const Routing& routing, const ScheduleOptions& options);

/// Checks every invariant against the routing it was built from and throws InternalError with the first
/// violation: each pair once and in an item whose experts contain it, offsets monotone, tokens ascending and
/// distinct, groups full but the last, strips in range.
void validate(const Schedule& schedule, const Routing& routing);

/// A minimal strip cover of one token's pairs: which rows are taken whole; the rest is taken by columns.
struct StripCover {
  std::vector<std::int32_t> rows;  ///< ascending
  std::vector<std::int32_t> cols;  ///< ascending
  std::int64_t strips() const { return static_cast<std::int64_t>(rows.size() + cols.size()); }
};
/// A smallest cover of any set; of a staircase min over k of (#rows with more than k selected columns) +
/// (#columns still needed), <= 2 sqrt(K), ties to the smaller k. `expert_ids` ascending and distinct.
StripCover minimal_strip_cover(std::span<const std::int32_t> expert_ids, std::int64_t grid_rows,
                               std::int64_t grid_cols);

}  // namespace moescope
