#include "core/ranks/strip_pairs.hpp"

#include <algorithm>

namespace moescope {
namespace {

std::int64_t largest_top_k(const Routing& routing) {
  std::int64_t most = 0;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    most = std::max(most, static_cast<std::int64_t>(routing.ids_of(token).size()));
  }
  return most;
}

}  // namespace

StripPairs::StripPairs(const Routing& routing)
    : routing_(routing),
      cover_(routing.grid_rows, routing.grid_cols, largest_top_k(routing)),
      used_(static_cast<std::size_t>(routing.grid_rows + routing.grid_cols)) {}

void StripPairs::assign(std::int64_t token, std::span<const char> hot) {
  const auto ids = routing_.ids_of(token);
  const auto rows = static_cast<std::int32_t>(routing_.grid_rows);
  const auto row_of = [&](std::int32_t id) { return static_cast<std::int32_t>(id / routing_.grid_cols); };
  const auto col_of = [&](std::int32_t id) {
    return rows + static_cast<std::int32_t>(id % routing_.grid_cols);
  };
  const auto is_hot = [&](std::int32_t strip) { return hot[static_cast<std::size_t>(strip)] != 0; };
  rest_.clear();
  for (const std::int32_t id : ids) {
    if (!is_hot(row_of(id)) && !is_hot(col_of(id))) {
      rest_.push_back(id);
    }
  }
  const StripCover cover = rest_.empty() ? StripCover{} : cover_.cover(rest_);
  for (const std::int32_t row : cover.rows) {
    used_[static_cast<std::size_t>(row)] = 1;
  }
  strip_.clear();
  distinct_.clear();
  for (const std::int32_t id : ids) {
    const std::int32_t row = row_of(id);
    const std::int32_t col = col_of(id);
    const bool by_row = is_hot(row) || (!is_hot(col) && used_[static_cast<std::size_t>(row)] != 0);
    strip_.push_back(by_row ? row : col);
  }
  for (const std::int32_t row : cover.rows) {
    used_[static_cast<std::size_t>(row)] = 0;
  }
  for (const std::int32_t strip : strip_) {
    char& seen = used_[static_cast<std::size_t>(strip)];
    if (seen == 0) {
      seen = 1;
      distinct_.push_back(strip);
    }
  }
  for (const std::int32_t strip : distinct_) {
    used_[static_cast<std::size_t>(strip)] = 0;
  }
}

}  // namespace moescope
