#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "core/base/error.hpp"
#include "core/import/import.hpp"

namespace moescope {
namespace {

/// A row's ids in ascending order.
std::vector<std::int32_t> row_of(const LayeredTrace& trace, std::int64_t layer, std::int64_t token) {
  const auto first = trace.expert_ids.begin() + (layer * trace.num_tokens + token) * trace.top_k;
  std::vector<std::int32_t> ids(first, first + trace.top_k);
  std::ranges::sort(ids);
  return ids;
}

void require_comparable(const LayeredTrace& ours, const LayeredTrace& other) {
  const auto require = [](const char* field, std::int64_t theirs, std::int64_t wanted) {
    if (theirs != wanted) {
      throw InvalidArgument("against", fmt::format("{} {}", field, theirs),
                            fmt::format("must be {}", wanted));
    }
  };
  require("top_k", other.top_k, ours.top_k);
  require("num_experts", other.num_experts, ours.num_experts);
  if (other.layers != ours.layers) {
    throw InvalidArgument("against", fmt::format("layers {}", fmt::join(other.layers, ",")),
                          fmt::format("must be {}", fmt::join(ours.layers, ",")));
  }
  if (other.num_tokens < ours.num_tokens) {
    throw InvalidArgument("against", fmt::format("num_tokens {}", other.num_tokens),
                          fmt::format("must be {} at least", ours.num_tokens));
  }
}

}  // namespace

TraceComparison compare_traces(const ImportedTrace& ours, const LayeredTrace& other) {
  const LayeredTrace& trace = ours.trace;
  require_comparable(trace, other);
  TraceComparison comparison;
  comparison.tied_rows = std::ssize(ours.ties);
  for (std::int64_t layer = 0; layer < std::ssize(trace.layers); ++layer) {
    for (std::int64_t token = 0; token < trace.num_tokens; ++token) {
      ++comparison.rows;
      const std::vector<std::int32_t> mine = row_of(trace, layer, token);
      const std::vector<std::int32_t> theirs = row_of(other, layer, token);
      if (mine == theirs) {
        ++comparison.equal;
        continue;
      }
      std::vector<std::int32_t> differ;
      std::ranges::set_symmetric_difference(mine, theirs, std::back_inserter(differ));
      const auto tied = ours.ties.find(layer * trace.num_tokens + token);
      if (tied != ours.ties.end() && std::ranges::includes(tied->second, differ)) {
        ++comparison.equal_but_ties;
        continue;
      }
      if (++comparison.different == 1) {
        comparison.first_different = fmt::format("layer {}, token {}: {} here, {} there",
                                                 trace.layers[static_cast<std::size_t>(layer)], token,
                                                 fmt::join(mine, " "), fmt::join(theirs, " "));
      }
    }
  }
  return comparison;
}

}  // namespace moescope
