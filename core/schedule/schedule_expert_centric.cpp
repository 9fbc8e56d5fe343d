#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/schedule_buckets.hpp"

namespace moescope {

std::int64_t ExpertGroups::count() const {
  const auto active = static_cast<std::int64_t>(experts.size());
  return active / group_size + (active % group_size != 0 ? 1 : 0);
}

WorkItem ExpertGroups::item(std::int64_t group) const {
  const auto active = static_cast<std::int64_t>(experts.size());
  const std::int64_t begin = group * group_size;
  return {.kind = WorkItemKind::kGroup,
          .expert_begin = begin,
          .expert_end = begin + std::min(group_size, active - begin)};
}

ExpertGroups make_expert_groups(std::vector<std::int32_t> group_of, std::int64_t group_size) {
  if (group_size < 1) throw InvalidArgument("group_size", std::to_string(group_size), "must be at least 1");
  ExpertGroups groups{.group_of = std::move(group_of), .experts = {}, .group_size = group_size};
  const auto active =
      std::count_if(groups.group_of.begin(), groups.group_of.end(), [](std::int32_t g) { return g >= 0; });
  groups.experts.reserve(static_cast<std::size_t>(active));
  for (std::size_t expert = 0; expert < groups.group_of.size(); ++expert) {
    if (groups.group_of[expert] < 0) continue;
    const auto rank = static_cast<std::int64_t>(groups.experts.size());
    groups.group_of[expert] = static_cast<std::int32_t>(rank / group_size);
    groups.experts.push_back(static_cast<std::int32_t>(expert));
  }
  return groups;
}

Schedule build_expert_centric(const Routing& routing, const ScheduleOptions& options) {
  Schedule schedule;
  schedule.kind = ScheduleKind::kExpertCentric;
  schedule.options = options;
  schedule.options.kind = schedule.kind;

  std::vector<std::int32_t> active(static_cast<std::size_t>(routing.num_experts()), -1);
  for (const std::int32_t expert : routing.expert_ids) active[expert] = 0;
  ExpertGroups groups = make_expert_groups(std::move(active), options.group_size);

  const auto assign = [&routing, &groups](std::int64_t token, const auto& emit) {
    for (std::int64_t p = routing.token_offsets[token]; p < routing.token_offsets[token + 1]; ++p) {
      emit(p, groups.group_of[routing.expert_ids[p]]);
    }
  };
  const std::vector<std::int64_t> group_tokens =
      sort_pairs_by_bucket(routing, groups.count(), assign, schedule);
  schedule.items.reserve(static_cast<std::size_t>(groups.count()));
  for (std::int64_t group = 0; group < groups.count(); ++group) {
    WorkItem item = groups.item(group);
    item.token_begin = group_tokens[group];
    item.token_end = group_tokens[group + 1];
    schedule.items.push_back(item);
  }
  schedule.experts = std::move(groups.experts);
  return schedule;
}

}  // namespace moescope
