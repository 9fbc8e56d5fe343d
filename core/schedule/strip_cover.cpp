#include "core/schedule/strip_cover.hpp"

#include <fmt/format.h>

#include <string>

#include "core/base/error.hpp"

namespace moescope {

ThresholdCover::Best ThresholdCover::find(std::span<const std::int32_t> ids) {
  std::int64_t rows = 0;
  std::int64_t longest = 0;
  for_each_grid_row(ids, grid_cols_, [&](std::int64_t row, std::size_t begin, std::size_t end) {
    const auto length = static_cast<std::int32_t>(end - begin);
    ++rows;
    longest = std::max<std::int64_t>(longest, length);
    --changes_[length];
    for (std::size_t i = begin; i < end; ++i) {
      std::int32_t& shortest = shortest_row_[ids[i] - row * grid_cols_];
      shortest = std::min(shortest, length);
    }
  });
  for_each_grid_row(ids, grid_cols_, [&](std::int64_t row, std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      std::int32_t& shortest = shortest_row_[ids[i] - row * grid_cols_];
      if (shortest == kUnused) continue;
      ++changes_[shortest];
      shortest = kUnused;
    }
  });
  Best best{.k = 0, .strips = rows};
  std::int64_t strips = rows;
  for (std::int64_t k = 1; k <= longest; ++k) {
    strips += changes_[k];
    changes_[k] = 0;
    if (strips < best.strips) best = {.k = k, .strips = strips};
  }
  return best;
}

SmallestCover::SmallestCover(std::int64_t grid_rows, std::int64_t grid_cols, std::int64_t max_top_k)
    : grid_cols_(grid_cols),
      threshold_(grid_cols, max_top_k),
      col_degree_(static_cast<std::size_t>(grid_cols)),
      col_partner_(static_cast<std::size_t>(grid_cols), kNone) {
  rows_.reserve(static_cast<std::size_t>(std::min(grid_rows, max_top_k)));
}

std::int64_t SmallestCover::size(std::span<const std::int32_t> ids) {
  return is_staircase(ids) ? threshold_.find(ids).strips : match(ids);
}

StripCover SmallestCover::cover(std::span<const std::int32_t> ids) {
  StripCover cover;
  if (is_staircase(ids)) {
    const std::int64_t k = threshold_.find(ids).k;
    for (const Row& row : rows_) {
      if (static_cast<std::int64_t>(row.end - row.begin) > k) {
        cover.rows.push_back(row.row);
        continue;
      }
      for (std::size_t i = row.begin; i < row.end; ++i) cover.cols.push_back(col_of(ids[i]));
    }
  } else {
    match(ids);
    // match() ends when layer_rows() reaches no column without partner: distance_ is set of what it reaches.
    for (std::size_t r = 0; r < rows_.size(); ++r) {
      if (distance_[r] == kFar) {
        cover.rows.push_back(rows_[r].row);
        continue;
      }
      for (std::size_t i = rows_[r].begin; i < rows_[r].end; ++i) cover.cols.push_back(col_of(ids[i]));
    }
  }
  std::sort(cover.cols.begin(), cover.cols.end());
  cover.cols.erase(std::unique(cover.cols.begin(), cover.cols.end()), cover.cols.end());
  return cover;
}

bool SmallestCover::is_staircase(std::span<const std::int32_t> ids) {
  rows_.clear();
  std::size_t longest = 0;
  for_each_grid_row(ids, grid_cols_, [&](std::int64_t row, std::size_t begin, std::size_t end) {
    rows_.push_back({static_cast<std::int32_t>(row), begin, end});
    longest = std::max(longest, end - begin);
  });
  row_lengths_.assign(longest + 1, 0);
  for (const Row& row : rows_) ++row_lengths_[row.end - row.begin];
  for (std::size_t n = longest; n > 0; --n) row_lengths_[n - 1] += row_lengths_[n];
  // In a staircase the n-th most selected column is in every row that selects n columns or more.
  std::size_t cols = 0;
  for (const std::int32_t id : ids) cols += col_degree_[col_of(id)]++ == 0 ? 1 : 0;
  bool nested = cols == longest;
  // Degrees and the counts of row_lengths_ are the same multiset: each degree takes one of its counts away.
  std::vector<std::int64_t>& left = degree_counts_;
  left.assign(rows_.size() + 1, 0);
  for (std::size_t n = 1; n <= longest; ++n) ++left[row_lengths_[n]];
  for (const std::int32_t id : ids) {
    std::int32_t& degree = col_degree_[col_of(id)];
    if (degree == 0) continue;
    nested = nested && --left[degree] >= 0;
    degree = 0;
  }
  return nested;
}

std::int64_t SmallestCover::match(std::span<const std::int32_t> ids) {
  const auto count = rows_.size();
  row_partner_.assign(count, kNone);
  distance_.resize(count);
  next_.resize(count);
  std::int64_t pairs = 0;
  while (layer_rows(ids)) {
    for (std::size_t r = 0; r < count; ++r) next_[r] = rows_[r].begin;
    for (std::size_t r = 0; r < count; ++r) {
      if (row_partner_[r] == kNone && augment(ids, static_cast<std::int32_t>(r))) ++pairs;
    }
  }
  for (const std::int32_t id : ids) col_partner_[col_of(id)] = kNone;
  return pairs;
}

/// Distances of rows from those without partner; whether a column without partner can be reached.
bool SmallestCover::layer_rows(std::span<const std::int32_t> ids) {
  queue_.clear();
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    distance_[r] = row_partner_[r] == kNone ? 0 : kFar;
    if (distance_[r] == 0) queue_.push_back(static_cast<std::int32_t>(r));
  }
  bool reached = false;
  for (std::size_t head = 0; head < queue_.size(); ++head) {
    const auto r = static_cast<std::size_t>(queue_[head]);
    for (std::size_t i = rows_[r].begin; i < rows_[r].end; ++i) {
      const std::int32_t partner = col_partner_[col_of(ids[i])];
      if (partner == kNone) {
        reached = true;
      } else if (distance_[partner] == kFar) {
        distance_[partner] = distance_[r] + 1;
        queue_.push_back(partner);
      }
    }
  }
  return reached;
}

/// Follows the layers from row `start` to a column without partner and swaps partners on the way. Paths may
/// be as long as the grid: a stack of its own.
bool SmallestCover::augment(std::span<const std::int32_t> ids, std::int32_t start) {
  path_.assign(1, start);
  while (!path_.empty()) {
    const std::int32_t r = path_.back();
    std::size_t& next = next_[r];
    if (next == rows_[r].end) {
      path_.pop_back();
      if (!path_.empty()) ++next_[path_.back()];
      continue;
    }
    const std::int32_t partner = col_partner_[col_of(ids[next])];
    if (partner == kNone) {
      for (const std::int32_t on_path : path_) {
        const std::int32_t col = col_of(ids[next_[on_path]]);
        row_partner_[on_path] = col;
        col_partner_[col] = on_path;
        ++next_[on_path];
      }
      return true;
    }
    if (distance_[partner] == distance_[r] + 1) {
      path_.push_back(partner);
    } else {
      ++next;
    }
  }
  return false;
}

StripCover minimal_strip_cover(std::span<const std::int32_t> expert_ids, std::int64_t grid_rows,
                               std::int64_t grid_cols) {
  if (grid_rows < 1) throw InvalidArgument("grid_rows", std::to_string(grid_rows), "must be at least 1");
  if (grid_cols < 1) throw InvalidArgument("grid_cols", std::to_string(grid_cols), "must be at least 1");
  for (std::size_t i = 0; i < expert_ids.size(); ++i) {
    const bool in_grid = expert_ids[i] >= 0 && expert_ids[i] < grid_rows * grid_cols;
    if (!in_grid || (i > 0 && expert_ids[i] <= expert_ids[i - 1])) {
      throw InvalidArgument(fmt::format("expert_ids[{}]", i), std::to_string(expert_ids[i]),
                            fmt::format("must lie in [0, {}) and ascend", grid_rows * grid_cols));
    }
  }
  return SmallestCover(grid_rows, grid_cols, static_cast<std::int64_t>(expert_ids.size())).cover(expert_ids);
}

}  // namespace moescope
