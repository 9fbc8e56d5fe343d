#include "kernels/buffers/strip_lists.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/error.hpp"

namespace moescope::cuda {
namespace {

/// One token's side of DeviceStrips.
class TokenStrips {
 public:
  TokenStrips(const LayerShape& shape, const HostStrips& strips, std::int64_t token)
      : rows_(shape.grid_rows),
        cols_(shape.grid_cols),
        row_(strips.row_log_probs.data() + token * rows_),
        col_(strips.col_log_probs.data() + token * cols_),
        uncovered_(strips.uncovered_rows.data() + token * rows_),
        threshold_(strips.threshold[static_cast<std::size_t>(token)]),
        tie_limit_(strips.tie_limit[static_cast<std::size_t>(token)]) {}

  /// visit(id, score) for the pairs of `strip`, ascending.
  template <class Visit>
  void for_each_pair(std::int32_t strip, const Visit& visit) const {
    if (strip < rows_) {
      for (std::int64_t c = 0; c < cols_; ++c) {
        test(row_[strip] + col_[c], strip * cols_ + c, visit);
      }
      return;
    }
    const std::int64_t c = strip - rows_;
    for (std::int64_t r = 0; r < rows_; ++r) {
      // A row that is a strip of its own is marked by -inf; with logits that overflow the softmax a threshold
      // may be -inf too, and such a pair's gate is 0.
      const bool marked = std::isinf(uncovered_[r]) && !std::isinf(row_[r]);
      if (!marked) {
        test(uncovered_[r] + col_[c], r * cols_ + c, visit);
      }
    }
  }

 private:
  template <class Visit>
  void test(float score, std::int64_t id, const Visit& visit) const {
    if (score > threshold_ || (score == threshold_ && id <= tie_limit_)) {
      visit(static_cast<std::int32_t>(id), score);
    }
  }

  std::int64_t rows_;
  std::int64_t cols_;
  const float* row_;
  const float* col_;
  const float* uncovered_;
  float threshold_;
  std::int32_t tie_limit_;
};

/// Throws InternalError unless 0 <= value < end.
void require_below(std::int64_t value, std::int64_t end, const char* what) {
  if (value < 0 || value >= end) {
    throw InternalError(fmt::format("strips: {} {} is not in [0, {})", what, value, end));
  }
}

/// visit(place of the strip in the cover, id, score) for the pairs of all strips of a token.
template <class Visit>
void for_each_pair_of_cover(const LayerShape& shape, const HostStrips& strips, std::int64_t token,
                            const Visit& visit) {
  const std::int32_t size = strips.cover_sizes[static_cast<std::size_t>(token)];
  require_below(size, strips.max_cover + 1, "number of a token's strips");
  const TokenStrips own(shape, strips, token);
  for (std::int32_t place = 0; place < size; ++place) {
    const std::int32_t strip = strips.cover[static_cast<std::size_t>(token * strips.max_cover + place)];
    require_below(strip, shape.grid_rows + shape.grid_cols, "strip of a token");
    own.for_each_pair(strip, [&](std::int32_t id, float score) { visit(place, id, score); });
  }
}

/// Throws InternalError unless the tiles hold the entries of every strip once, in order.
void require_tiles(const HostStrips& strips) {
  std::int64_t next = 0;
  for (const StripTile& tile : strips.tiles) {
    require_below(tile.strip, std::ssize(strips.strip_offsets) - 1, "strip of a tile");
    const auto strip = static_cast<std::size_t>(tile.strip);
    if (tile.first_entry != next || tile.count < 1 || tile.first_entry < strips.strip_offsets[strip] ||
        tile.first_entry + tile.count > strips.strip_offsets[strip + 1]) {
      throw InternalError(fmt::format("tile of strip {}: {} entries from {} on, after {}", tile.strip,
                                      tile.count, tile.first_entry, next));
    }
    next += tile.count;
  }
  if (next != std::ssize(strips.strip_tokens)) {
    throw InternalError(fmt::format("tiles hold {} of {} entries", next, strips.strip_tokens.size()));
  }
}

}  // namespace

Routing routing_of(const LayerShape& shape, const HostStrips& strips) {
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets.reserve(static_cast<std::size_t>(shape.num_tokens) + 1);
  routing.token_offsets.push_back(0);
  std::vector<std::pair<std::int32_t, float>> pairs;  // id and score
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto at = static_cast<std::size_t>(token);
    pairs.clear();
    for_each_pair_of_cover(shape, strips, token, [&](std::int32_t /*place*/, std::int32_t id, float score) {
      pairs.emplace_back(id, score);
    });
    std::ranges::sort(pairs);
    const float shift = strips.gate_shift[at];
    const float sum = shape.gate_mode == GateMode::kProbability ? std::exp(shift) : 1.0F;
    for (const auto& [id, score] : pairs) {
      routing.expert_ids.push_back(id);
      routing.gates.push_back(std::exp(score - shift) * sum);
    }
    routing.token_offsets.push_back(routing.num_pairs());
  }
  return routing;
}

std::vector<PairPlace> places_of(const LayerShape& shape, const HostStrips& strips) {
  std::vector<PairPlace> places;
  std::vector<std::pair<std::int32_t, PairPlace>> pairs;  // by id
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    pairs.clear();
    for_each_pair_of_cover(shape, strips, token, [&](std::int32_t cover, std::int32_t id, float /*score*/) {
      const std::int32_t strip = strips.cover[static_cast<std::size_t>(token * strips.max_cover + cover)];
      const auto cols = static_cast<std::int32_t>(shape.grid_cols);
      pairs.push_back({id, {.cover = cover, .place = strip < shape.grid_rows ? id % cols : id / cols}});
    });
    std::ranges::sort(pairs, {}, [](const auto& pair) { return pair.first; });
    for (const auto& [id, place] : pairs) {
      places.push_back(place);
    }
  }
  return places;
}

Schedule schedule_of(const LayerShape& shape, const ScheduleOptions& options, const HostStrips& strips,
                     const Routing& routing) {
  require_tiles(strips);
  Schedule schedule;
  schedule.kind = options.kind;
  schedule.options = options;
  schedule.pair_offsets.push_back(0);
  for (std::int32_t strip = 0; strip < shape.grid_rows + shape.grid_cols; ++strip) {
    const auto at = static_cast<std::size_t>(strip);
    require_below(strips.strip_offsets[at], strips.strip_offsets[at + 1] + 1, "first entry of a strip");
    require_below(strips.strip_offsets[at + 1], std::ssize(strips.strip_tokens) + 1, "end of a strip");
    const auto begin = strips.strip_tokens.begin() + strips.strip_offsets[at];
    const auto end = strips.strip_tokens.begin() + strips.strip_offsets[at + 1];
    if (begin == end) {
      continue;
    }
    const bool is_row = strip < shape.grid_rows;
    WorkItem item{.kind = is_row ? WorkItemKind::kRowStrip : WorkItemKind::kColStrip,
                  .strip = is_row ? strip : static_cast<std::int32_t>(strip - shape.grid_rows),
                  .token_begin = std::ssize(schedule.tokens)};
    std::vector<std::int32_t> tokens(begin, end);
    std::ranges::sort(tokens);
    for (const std::int32_t token : tokens) {
      require_below(token, shape.num_tokens, "token of a strip");
      const auto ids = routing.ids_of(token);
      TokenStrips(shape, strips, token).for_each_pair(strip, [&](std::int32_t id, float /*score*/) {
        const auto found = std::ranges::lower_bound(ids, id);
        if (found == ids.end() || *found != id) {
          throw InternalError(
              fmt::format("strip {} lists token {}, whose routing lacks expert {}", strip, token, id));
        }
        schedule.sorted_pair_ids.push_back(routing.token_offsets[static_cast<std::size_t>(token)] +
                                           (found - ids.begin()));
      });
      schedule.tokens.push_back(token);
      schedule.pair_offsets.push_back(std::ssize(schedule.sorted_pair_ids));
    }
    item.token_end = std::ssize(schedule.tokens);
    schedule.items.push_back(item);
  }
  return schedule;
}

}  // namespace moescope::cuda
