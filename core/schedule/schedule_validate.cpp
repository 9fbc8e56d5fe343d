#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"

namespace moescope {

namespace {

template <class... Args>
[[noreturn]] void violation(fmt::format_string<Args...> text, Args&&... args) {
  throw InternalError("schedule: " + fmt::format(text, std::forward<Args>(args)...));
}

std::string_view item_kind_name(WorkItemKind kind) {
  switch (kind) {
    case WorkItemKind::kToken:
      return "token";
    case WorkItemKind::kGroup:
      return "group";
    case WorkItemKind::kRowStrip:
      return "row strip";
    case WorkItemKind::kColStrip:
      return "column strip";
    case WorkItemKind::kAllExperts:
      return "all experts";
  }
  return "?";
}

bool item_kind_belongs(ScheduleKind schedule, WorkItemKind item) {
  switch (schedule) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kSparseLibrary:
      return item == WorkItemKind::kToken;
    case ScheduleKind::kExpertCentric:
      return item == WorkItemKind::kGroup;
    case ScheduleKind::kStaircase:
      return item != WorkItemKind::kToken && item != WorkItemKind::kAllExperts;
    case ScheduleKind::kDenseMasked:
      return item == WorkItemKind::kAllExperts;
    case ScheduleKind::kAuto:
      return false;
  }
  return false;
}

/// Sizes and offsets, so that every later index is in range.
void check_arrays(const Schedule& s, const Routing& routing) {
  if (s.options.kind != s.kind) {
    violation("kind is {} but options.kind is {}", to_string(s.kind), to_string(s.options.kind));
  }
  if (std::ssize(s.sorted_pair_ids) != routing.num_pairs()) {
    violation("sorted_pair_ids has {} entries, the routing has {} pairs", s.sorted_pair_ids.size(),
              routing.num_pairs());
  }
  if (s.pair_offsets.size() != s.tokens.size() + 1) {
    violation("pair_offsets has {} entries, must be one more than tokens, {}", s.pair_offsets.size(),
              s.tokens.size());
  }
  if (s.pair_offsets.front() != 0) violation("pair_offsets[0] = {}, must be 0", s.pair_offsets.front());
  for (std::size_t t = 0; t < s.tokens.size(); ++t) {
    if (s.pair_offsets[t + 1] < s.pair_offsets[t]) {
      violation("pair_offsets[{}] = {} is below pair_offsets[{}] = {}", t + 1, s.pair_offsets[t + 1], t,
                s.pair_offsets[t]);
    }
    if (s.tokens[t] < 0 || s.tokens[t] >= routing.num_tokens) {
      violation("tokens[{}] = {} is not in [0, {})", t, s.tokens[t], routing.num_tokens);
    }
  }
  if (s.pair_offsets.back() != routing.num_pairs()) {
    violation("pair_offsets ends at {}, must end at the number of pairs, {}", s.pair_offsets.back(),
              routing.num_pairs());
  }
}

/// The items' token ranges cut `tokens` into consecutive pieces, ascending within each.
void check_token_ranges(const Schedule& s) {
  std::int64_t expected = 0;
  for (std::size_t i = 0; i < s.items.size(); ++i) {
    const WorkItem& item = s.items[i];
    if (item.token_begin != expected || item.token_end < item.token_begin ||
        item.token_end > std::ssize(s.tokens)) {
      violation("items[{}] has tokens [{}, {}), must begin at {} and end by {}", i, item.token_begin,
                item.token_end, expected, s.tokens.size());
    }
    for (std::int64_t t = item.token_begin + 1; t < item.token_end; ++t) {
      if (s.tokens[t] <= s.tokens[t - 1]) {
        violation("tokens[{}] = {} does not ascend within items[{}]", t, s.tokens[t], i);
      }
    }
    expected = item.token_end;
  }
  if (expected != std::ssize(s.tokens))
    violation("{} of {} tokens are in no item", std::ssize(s.tokens) - expected, s.tokens.size());
}

/// Kinds, their order, strips in range and ascending.
void check_items(const Schedule& s, const Routing& routing) {
  for (std::size_t i = 0; i < s.items.size(); ++i) {
    const WorkItem& item = s.items[i];
    if (!item_kind_belongs(s.kind, item.kind)) {
      violation("items[{}] is of kind '{}', which {} has not", i, item_kind_name(item.kind),
                to_string(s.kind));
    }
    const bool is_strip = item.kind == WorkItemKind::kRowStrip || item.kind == WorkItemKind::kColStrip;
    const std::int64_t strips = item.kind == WorkItemKind::kRowStrip ? routing.grid_rows : routing.grid_cols;
    if (is_strip ? item.strip < 0 || item.strip >= strips : item.strip != -1) {
      violation("items[{}].strip = {} does not fit a '{}' of a {} x {} grid", i, item.strip,
                item_kind_name(item.kind), routing.grid_rows, routing.grid_cols);
    }
    const bool may_be_empty = item.kind == WorkItemKind::kAllExperts;
    if (item.token_begin == item.token_end && !may_be_empty) violation("items[{}] has no tokens", i);
    if (i == 0 || s.kind != ScheduleKind::kStaircase) continue;
    const WorkItem& before = s.items[i - 1];
    const auto rank = [](WorkItemKind kind) {
      return kind == WorkItemKind::kRowStrip ? 0 : kind == WorkItemKind::kColStrip ? 1 : 2;
    };
    if (rank(item.kind) < rank(before.kind) ||
        (is_strip && item.kind == before.kind && item.strip <= before.strip)) {
      violation("items[{}] ({} {}) must not follow {} {}", i, item_kind_name(item.kind), item.strip,
                item_kind_name(before.kind), before.strip);
    }
  }
  const bool per_token = s.kind == ScheduleKind::kTokenCentric || s.kind == ScheduleKind::kSparseLibrary;
  const bool dense = s.kind == ScheduleKind::kDenseMasked;
  if (!per_token && !dense) return;
  // Together with ascending distinct tokens in range, these counts leave one possibility: every token, in
  // order.
  if (std::ssize(s.items) != (dense ? 1 : routing.num_tokens) || std::ssize(s.tokens) != routing.num_tokens) {
    violation("{} has {} items with {} tokens, the batch has {} tokens", to_string(s.kind), s.items.size(),
              s.tokens.size(), routing.num_tokens);
  }
  for (std::int64_t t = 0; t < routing.num_tokens; ++t) {
    if (s.tokens[t] != t)
      violation("tokens[{}] = {}, must be {} in {}", t, s.tokens[t], t, to_string(s.kind));
  }
}

/// Groups cut `experts` into consecutive pieces of group_size, only the last may be short; experts ascend
/// overall.
void check_groups(const Schedule& s, const Routing& routing) {
  std::int64_t expected = 0;
  for (std::size_t i = 0; i < s.items.size(); ++i) {
    const WorkItem& item = s.items[i];
    if (item.kind != WorkItemKind::kGroup) {
      if (item.expert_begin != 0 || item.expert_end != 0) {
        violation("items[{}] is of kind '{}' and lists experts [{}, {})", i, item_kind_name(item.kind),
                  item.expert_begin, item.expert_end);
      }
      continue;
    }
    const std::int64_t left = std::ssize(s.experts) - expected;
    const std::int64_t size = std::min(s.options.group_size, left);
    if (item.expert_begin != expected || item.expert_end != expected + size || size < 1) {
      violation("items[{}] has experts [{}, {}), must be [{}, {}) with group_size {}", i, item.expert_begin,
                item.expert_end, expected, expected + size, s.options.group_size);
    }
    expected = item.expert_end;
  }
  if (expected != std::ssize(s.experts)) {
    violation("{} of {} listed experts are in no group", std::ssize(s.experts) - expected, s.experts.size());
  }
  for (std::size_t e = 0; e < s.experts.size(); ++e) {
    if (s.experts[e] < 0 || s.experts[e] >= routing.num_experts()) {
      violation("experts[{}] = {} is not in [0, {})", e, s.experts[e], routing.num_experts());
    }
    if (e > 0 && s.experts[e] <= s.experts[e - 1])
      violation("experts[{}] = {} does not ascend", e, s.experts[e]);
  }
}

/// Pairs of a token that lie in a grid row, by its sorted ids.
std::int64_t pairs_in_row(const Routing& routing, std::int64_t token, std::int64_t row) {
  const auto ids = routing.ids_of(token);
  const auto first = std::lower_bound(ids.begin(), ids.end(), row * routing.grid_cols);
  return std::lower_bound(first, ids.end(), (row + 1) * routing.grid_cols) - first;
}

/// Every pair once, by its own token, in an item whose experts contain it.
class PairChecker {
 public:
  PairChecker(const Schedule& schedule, const Routing& routing)
      : s_(schedule),
        routing_(routing),
        seen_(static_cast<std::size_t>(routing.num_pairs()), false),
        expert_used_(schedule.experts.size(), false),
        strips_of_(static_cast<std::size_t>(routing.num_tokens), 0),
        in_groups_(static_cast<std::size_t>(routing.num_tokens), 0) {}

  void check() {
    for (std::size_t i = 0; i < s_.items.size(); ++i) {
      for (std::int64_t t = s_.items[i].token_begin; t < s_.items[i].token_end; ++t) check_slot(i, t);
    }
    for (std::size_t e = 0; e < expert_used_.size(); ++e) {
      if (!expert_used_[e]) violation("experts[{}] = {} has no pair in its group", e, s_.experts[e]);
    }
    for (std::int64_t token = 0; token < routing_.num_tokens; ++token) {
      const std::int64_t top_k = routing_.token_offsets[token + 1] - routing_.token_offsets[token];
      const std::int64_t strips = strips_of_[token];
      if (s_.options.strip_rule == StripRule::kMinimalCover && strips * strips > 4 * top_k) {
        violation("token {} has {} strips for {} pairs, more than 2 sqrt(K)", token, strips, top_k);
      }
      if (in_groups_[token] != 0 && in_groups_[token] != top_k) {
        violation("token {} has {} of its {} pairs in groups, must be all or none", token, in_groups_[token],
                  top_k);
      }
    }
  }

 private:
  void check_slot(std::size_t i, std::int64_t t) {
    const WorkItem& item = s_.items[i];
    const std::int64_t token = s_.tokens[t];
    const std::int64_t begin = s_.pair_offsets[t];
    const std::int64_t end = s_.pair_offsets[t + 1];
    const bool is_strip = item.kind == WorkItemKind::kRowStrip || item.kind == WorkItemKind::kColStrip;
    const bool is_group = item.kind == WorkItemKind::kGroup;
    if (begin == end && (is_strip || is_group)) violation("token {} has no pair in items[{}]", token, i);
    for (std::int64_t at = begin; at < end; ++at) {
      const std::int64_t pair = s_.sorted_pair_ids[at];
      if (pair < routing_.token_offsets[token] || pair >= routing_.token_offsets[token + 1]) {
        violation("sorted_pair_ids[{}] = {} is not a pair of token {}", at, pair, token);
      }
      if (at > begin && pair <= s_.sorted_pair_ids[at - 1]) {
        violation("sorted_pair_ids[{}] = {} does not ascend within token {}", at, pair, token);
      }
      const std::int32_t expert = routing_.expert_ids[pair];
      if (!contains(item, expert)) {
        violation("pair {} of expert {} is in items[{}], a {} without that expert", pair, expert, i,
                  item_kind_name(item.kind));
      }
      if (seen_[pair]) violation("pair {} appears twice", pair);
      seen_[pair] = true;
    }
    if (item.kind == WorkItemKind::kRowStrip && end - begin != pairs_in_row(routing_, token, item.strip)) {
      violation("row strip {} takes {} of the {} pairs that token {} has in it", item.strip, end - begin,
                pairs_in_row(routing_, token, item.strip), token);
    }
    if (is_strip) ++strips_of_[token];
    if (is_group) in_groups_[token] += end - begin;
  }

  /// Whether the item's experts include `expert`; marks experts of groups as used.
  bool contains(const WorkItem& item, std::int32_t expert) {
    if (item.kind == WorkItemKind::kRowStrip) return expert / routing_.grid_cols == item.strip;
    if (item.kind == WorkItemKind::kColStrip) return expert % routing_.grid_cols == item.strip;
    if (item.kind != WorkItemKind::kGroup) return true;
    const auto end = s_.experts.begin() + item.expert_end;
    const auto at = std::lower_bound(s_.experts.begin() + item.expert_begin, end, expert);
    if (at == end || *at != expert) return false;
    expert_used_[at - s_.experts.begin()] = true;
    return true;
  }

  const Schedule& s_;
  const Routing& routing_;
  std::vector<bool> seen_;               ///< [M]
  std::vector<bool> expert_used_;        ///< per entry of Schedule::experts
  std::vector<std::int64_t> strips_of_;  ///< [L]
  std::vector<std::int64_t> in_groups_;  ///< [L] pairs that are in groups
};

}  // namespace

void validate(const Schedule& schedule, const Routing& routing) {
  check_arrays(schedule, routing);
  check_token_ranges(schedule);
  check_items(schedule, routing);
  check_groups(schedule, routing);
  PairChecker(schedule, routing).check();
}

}  // namespace moescope
