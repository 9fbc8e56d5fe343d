#include "core/schedule/schedule.hpp"

#include <omp.h>

#include <algorithm>
#include <string>

#include "core/base/error.hpp"
#include "core/schedule/schedule_buckets.hpp"
#include "core/schedule/schedule_info.hpp"

namespace moescope {

namespace {

template <class T>
std::int64_t array_bytes(const std::vector<T>& array) {
  return static_cast<std::int64_t>(array.size() * sizeof(T));
}

}  // namespace

std::string_view to_string(ScheduleKind kind) { return schedule_info(kind).name; }

ScheduleKind parse_schedule_kind(std::string_view text) {
  std::string known;
  for (const ScheduleInfo& info : schedule_infos()) {
    if (!info.kind || !info.plain()) continue;
    if (text == info.name) return *info.kind;
    known += known.empty() ? "" : ", ";
    known += info.name;
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
  if (!options.tokens.every()) {
    return to_string(options.tokens);
  }
  for (const ScheduleInfo& info : schedule_infos()) {
    const bool variant =
        !schedule_info(options.kind).strips || options.kind == ScheduleKind::kAuto ||
        (info.strip_rule == options.strip_rule && info.deterministic == options.deterministic);
    if (info.kind == options.kind && variant) {
      return std::string(info.name);
    }
  }
  throw InternalError("a schedule without a name");
}

ScheduleOptions parse_schedule(std::string_view text) {
  if (const auto rule = parse_token_rule(text)) {
    return {.kind = ScheduleKind::kExpertCentric, .group_size = 1, .tokens = *rule};
  }
  if (const ScheduleInfo* info = find_schedule_info(text); info != nullptr && info->kind) {
    return {.kind = *info->kind, .deterministic = info->deterministic, .strip_rule = info->strip_rule};
  }
  return {.kind = parse_schedule_kind(text)};
}

bool is_fused(ScheduleKind kind) { return schedule_info(kind).fused; }

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
