#include "core/ranks/placement.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.hpp"

namespace moescope {
namespace {

[[noreturn]] void refuse(std::string_view place, std::int64_t value, std::string_view requirement) {
  throw InvalidArgument(place, fmt::to_string(value), requirement);
}

void require_size(std::string_view field, std::size_t size, std::int64_t wanted) {
  if (static_cast<std::int64_t>(size) != wanted) {
    refuse(fmt::format("{}.size", field), static_cast<std::int64_t>(size), fmt::format("must be {}", wanted));
  }
}

void require_owner(std::string_view field, std::size_t at, std::int32_t owner, std::int64_t ranks) {
  if (owner < kEveryRank || owner >= ranks) {
    refuse(fmt::format("{}[{}]", field, at), owner, fmt::format("must be a rank below {}, or -1", ranks));
  }
}

void require_holders(const ExpertPlacement& placement, std::int64_t expert) {
  const auto ranks = placement.holders_of(expert);
  if (ranks.empty()) {
    refuse("expert", expert, "must lie on a rank");
  }
  if (ranks.size() == 1 && ranks.front() == kEveryRank) {
    return;
  }
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] < 0 || ranks[i] >= placement.group.ranks || (i > 0 && ranks[i] <= ranks[i - 1])) {
      refuse(fmt::format("holders of expert {} [{}]", expert, i), ranks[i],
             fmt::format("must ascend below {} ranks", placement.group.ranks));
    }
  }
}

}  // namespace

std::span<const std::int32_t> ExpertPlacement::holders_of(std::int64_t expert) const {
  const auto begin = static_cast<std::size_t>(holder_offsets[static_cast<std::size_t>(expert)]);
  const auto end = static_cast<std::size_t>(holder_offsets[static_cast<std::size_t>(expert) + 1]);
  return std::span(holders).subspan(begin, end - begin);
}

bool ExpertPlacement::holds(std::int64_t rank, std::int64_t expert) const {
  const auto ranks = holders_of(expert);
  return ranks.front() == kEveryRank || std::ranges::find(ranks, rank) != ranks.end();
}

std::vector<std::int64_t> ExpertPlacement::experts_per_rank() const {
  std::vector<std::int64_t> count(static_cast<std::size_t>(group.ranks));
  std::int64_t everywhere = 0;
  for (const std::int32_t rank : holders) {
    if (rank == kEveryRank) {
      ++everywhere;
    } else {
      ++count[static_cast<std::size_t>(rank)];
    }
  }
  for (std::int64_t& each : count) {
    each += everywhere;
  }
  return count;
}

std::int64_t ExpertPlacement::copies() const {
  std::int64_t stored = 0;
  for (const std::int64_t each : experts_per_rank()) {
    stored += each;
  }
  return stored - num_experts();
}

void ExpertPlacement::validate() const {
  group.validate();
  if (grid_rows < 1 || grid_cols < 1) {
    refuse(grid_rows < 1 ? "grid_rows" : "grid_cols", std::min(grid_rows, grid_cols), "must be at least 1");
  }
  require_size("holder_offsets", holder_offsets.size(), num_experts() + 1);
  if (holder_offsets.front() != 0) {
    refuse("holder_offsets[0]", holder_offsets.front(), "must be 0");
  }
  for (std::size_t e = 1; e < holder_offsets.size(); ++e) {
    if (holder_offsets[e] < holder_offsets[e - 1]) {
      refuse(fmt::format("holder_offsets[{}]", e), holder_offsets[e], "must not fall");
    }
  }
  require_size("holders", holders.size(), holder_offsets.back());
  for (std::int64_t expert = 0; expert < num_experts(); ++expert) {
    require_holders(*this, expert);
  }
  if (row_owner.empty() && col_owner.empty()) {
    return;
  }
  require_size("row_owner", row_owner.size(), grid_rows);
  require_size("col_owner", col_owner.size(), grid_cols);
  for (std::size_t i = 0; i < row_owner.size(); ++i) {
    require_owner("row_owner", i, row_owner[i], group.ranks);
  }
  for (std::size_t i = 0; i < col_owner.size(); ++i) {
    require_owner("col_owner", i, col_owner[i], group.ranks);
  }
  for (std::int64_t expert = 0; expert < num_experts(); ++expert) {
    for (const std::int32_t owner : {row_owner[static_cast<std::size_t>(expert / grid_cols)],
                                     col_owner[static_cast<std::size_t>(expert % grid_cols)]}) {
      if (owner == kEveryRank ? holders_of(expert).front() != kEveryRank : !holds(owner, expert)) {
        refuse("expert", expert, fmt::format("must lie on rank {}, its strip's", owner));
      }
    }
  }
}

}  // namespace moescope
