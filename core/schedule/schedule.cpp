#include "core/schedule/schedule.hpp"

#include <omp.h>

#include <algorithm>
#include <array>
#include <string>

#include "core/base/error.hpp"
#include "core/schedule/schedule_buckets.hpp"

namespace moescope {

namespace {

constexpr std::array kKinds = {ScheduleKind::kTokenCentric,  ScheduleKind::kExpertCentric,
                               ScheduleKind::kStaircase,     ScheduleKind::kDenseMasked,
                               ScheduleKind::kSparseLibrary, ScheduleKind::kAuto};

/// Follow the name of a staircase that takes rows alone, and of one that need not be bit-repeatable.
constexpr std::string_view kRows = ":rows";
constexpr std::string_view kAtomics = ":atomics";

template <class T>
std::int64_t array_bytes(const std::vector<T>& array) {
  return static_cast<std::int64_t>(array.size() * sizeof(T));
}

}  // namespace

std::string_view to_string(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::kTokenCentric:
      return "token_centric";
    case ScheduleKind::kExpertCentric:
      return "expert_centric";
    case ScheduleKind::kStaircase:
      return "staircase";
    case ScheduleKind::kDenseMasked:
      return "dense_masked";
    case ScheduleKind::kSparseLibrary:
      return "sparse_library";
    case ScheduleKind::kAuto:
      return "auto";
  }
  return "?";
}

ScheduleKind parse_schedule_kind(std::string_view text) {
  std::string known;
  for (const ScheduleKind kind : kKinds) {
    if (text == to_string(kind)) return kind;
    known += known.empty() ? "" : ", ";
    known += to_string(kind);
  }
  throw InvalidArgument("schedule", text, "must be one of " + known);
}

void validate_tile_tokens(std::int64_t tile_tokens) {
  if (tile_tokens < 1 || tile_tokens > kStripTileTokens) {
    throw InvalidArgument("tile_tokens", fmt::to_string(tile_tokens),
                          fmt::format("must be 1 to {}", kStripTileTokens));
  }
}

std::string to_string(const ScheduleOptions& options) {
  const bool staircase = options.kind == ScheduleKind::kStaircase;
  return fmt::format("{}{}{}", to_string(options.kind),
                     staircase && options.strip_rule == StripRule::kRowsOnly ? kRows : "",
                     staircase && !options.deterministic ? kAtomics : "");
}

ScheduleOptions parse_schedule(std::string_view text) {
  for (const StripRule rule : {StripRule::kMinimalCover, StripRule::kRowsOnly}) {
    for (const bool deterministic : {true, false}) {
      const ScheduleOptions staircase{
          .kind = ScheduleKind::kStaircase, .deterministic = deterministic, .strip_rule = rule};
      if (text == to_string(staircase)) {
        return staircase;
      }
    }
  }
  return {.kind = parse_schedule_kind(text)};
}

bool is_fused(ScheduleKind kind) {
  return kind == ScheduleKind::kTokenCentric || kind == ScheduleKind::kExpertCentric ||
         kind == ScheduleKind::kStaircase;
}

std::int64_t Schedule::bytes() const {
  return array_bytes(items) + array_bytes(experts) + array_bytes(tokens) + array_bytes(pair_offsets) +
         array_bytes(sorted_pair_ids);
}

std::vector<std::int32_t> item_experts(const Schedule& schedule, const WorkItem& item,
                                       const Routing& routing) {
  std::vector<std::int32_t> ids;
  const auto arithmetic = [&ids](std::int64_t count, std::int64_t first, std::int64_t step) {
    ids.resize(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) ids[i] = static_cast<std::int32_t>(first + i * step);
  };
  switch (item.kind) {
    case WorkItemKind::kToken:
      break;
    case WorkItemKind::kGroup:
      ids.assign(schedule.experts.begin() + item.expert_begin, schedule.experts.begin() + item.expert_end);
      break;
    case WorkItemKind::kRowStrip:
      arithmetic(routing.grid_cols, item.strip * routing.grid_cols, 1);
      break;
    case WorkItemKind::kColStrip:
      arithmetic(routing.grid_rows, item.strip, routing.grid_cols);
      break;
    case WorkItemKind::kAllExperts:
      arithmetic(routing.num_experts(), 0, 1);
      break;
  }
  return ids;
}

Schedule build_schedule(const Routing& routing, const ScheduleOptions& options) {
  switch (options.kind) {
    case ScheduleKind::kTokenCentric:
      return build_token_centric(routing, options);
    case ScheduleKind::kExpertCentric:
      return build_expert_centric(routing, options);
    case ScheduleKind::kStaircase:
      return build_staircase(routing, options);
    case ScheduleKind::kDenseMasked:
      return build_dense_masked(routing, options);
    case ScheduleKind::kSparseLibrary: {
      Schedule schedule = build_token_centric(routing, options);
      schedule.kind = ScheduleKind::kSparseLibrary;
      schedule.options.kind = ScheduleKind::kSparseLibrary;
      return schedule;
    }
    case ScheduleKind::kAuto:
      break;
  }
  throw InternalError("build_schedule was asked for 'auto', which choose_schedule resolves first");
}

std::vector<std::int64_t> balanced_token_ranges(const Routing& routing, std::int64_t min_pairs) {
  const std::int64_t ranges =
      std::clamp<std::int64_t>(routing.num_pairs() / min_pairs, 1, omp_get_max_threads());
  std::vector<std::int64_t> first_token(static_cast<std::size_t>(ranges + 1), 0);
  const auto offsets_end = routing.token_offsets.begin() + routing.num_tokens;
  for (std::int64_t range = 1; range < ranges; ++range) {
    const std::int64_t pair = routing.num_pairs() / ranges * range;
    first_token[range] =
        std::lower_bound(routing.token_offsets.begin(), offsets_end, pair) - routing.token_offsets.begin();
  }
  first_token.back() = routing.num_tokens;
  return first_token;
}

}  // namespace moescope
