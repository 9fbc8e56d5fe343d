#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/schedule/schedule.hpp"

/// Covers of a token's experts by grid rows and columns. A set of experts is a bipartite graph: rows and
/// columns are its vertices, experts its edges, strip covers its vertex covers. What the Cartesian router
/// selects is a staircase: of any two rows one selects all the other's columns.
namespace moescope {

/// Calls visit(row, begin, end) for each grid row that ids[begin..end) select, ascending. One division per
/// row.
template <class Visit>
void for_each_grid_row(std::span<const std::int32_t> ids, std::int64_t grid_cols, const Visit& visit) {
  std::size_t begin = 0;
  while (begin < ids.size()) {
    const std::int64_t row = ids[begin] / grid_cols;
    const std::int64_t row_end = (row + 1) * grid_cols;
    std::size_t end = begin + 1;
    while (end < ids.size() && ids[end] < row_end) ++end;
    visit(row, begin, end);
    begin = end;
  }
}

/// Covers by row length, which the staircase schedule takes: rows that select more than k columns are strips,
/// columns take the rest. The best of them is a smallest cover of a staircase, and of other sets one strip
/// more or so. Does one token after another without allocating.
class ThresholdCover {
 public:
  /// `max_top_k`: the most pairs a token has.
  ThresholdCover(std::int64_t grid_cols, std::int64_t max_top_k)
      : grid_cols_(grid_cols),
        shortest_row_(static_cast<std::size_t>(grid_cols), kUnused),
        changes_(static_cast<std::size_t>(std::min(grid_cols, max_top_k) + 1)) {}

  struct Best {
    std::int64_t k = 0;       ///< ties go to the smaller k: fewer columns
    std::int64_t strips = 0;  ///< size of that cover
  };

  /// min over k of rows(k) + cols(k): a row with n columns is a strip while k < n, and a column is needed
  /// once k reaches the length of the shortest row that selects it. Two counts per length give all k in O(K).
  Best find(std::span<const std::int32_t> ids);

 private:
  static constexpr std::int32_t kUnused = std::numeric_limits<std::int32_t>::max();
  std::int64_t grid_cols_;
  std::vector<std::int32_t> shortest_row_;  ///< per column, kUnused between tokens
  std::vector<std::int64_t> changes_;       ///< strips(k) - strips(k - 1), zero between tokens
};

/// The smallest cover of any set: as many strips as the largest matching of rows with columns has pairs
/// (Koenig 1931), which Hopcroft and Karp's algorithm (1973) finds. Of a staircase it is ThresholdCover's, at
/// the price of that and a count of columns.
class SmallestCover {
 public:
  SmallestCover(std::int64_t grid_rows, std::int64_t grid_cols, std::int64_t max_top_k);

  std::int64_t size(std::span<const std::int32_t> ids);
  /// The cover itself. Of a set that is no staircase it takes the rows that no matched path from a row
  /// without partner reaches, and the columns that one does.
  StripCover cover(std::span<const std::int32_t> ids);

 private:
  static constexpr std::int32_t kNone = -1;
  static constexpr std::int32_t kFar = std::numeric_limits<std::int32_t>::max();

  struct Row {
    std::int32_t row = 0;  ///< of the grid
    std::size_t begin = 0;
    std::size_t end = 0;
  };

  /// Whether of any two rows one selects all the other's columns: the columns are then exactly as often
  /// selected as the rows' lengths say (Gale 1957, Ryser 1957).
  bool is_staircase(std::span<const std::int32_t> ids);
  /// Pairs rows_ with columns, as many as can be.
  std::int64_t match(std::span<const std::int32_t> ids);
  bool layer_rows(std::span<const std::int32_t> ids);
  bool augment(std::span<const std::int32_t> ids, std::int32_t start);
  std::int32_t col_of(std::int32_t id) const { return static_cast<std::int32_t>(id % grid_cols_); }

  std::int64_t grid_cols_;
  ThresholdCover threshold_;
  std::vector<Row> rows_;                    ///< of the token
  std::vector<std::int64_t> row_lengths_;    ///< [n]: rows that select n columns or more
  std::vector<std::int64_t> degree_counts_;  ///< [n]: columns that a staircase's n rows select
  std::vector<std::int32_t> col_degree_;     ///< [Nc], zero between tokens
  std::vector<std::int32_t> col_partner_;    ///< [Nc]: index into rows_, kNone between tokens
  std::vector<std::int32_t> row_partner_;    ///< per row of rows_: its column, kNone without
  std::vector<std::int32_t> distance_;  ///< per row of rows_, in steps of a path from one without partner
  std::vector<std::size_t> next_;       ///< per row of rows_: the id to try next
  std::vector<std::int32_t> queue_;
  std::vector<std::int32_t> path_;
};

}  // namespace moescope
