#include "core/workload/layered_trace.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// Where a pair stands, for messages.
struct Place {
  std::int64_t layer;
  std::int64_t token;
  std::int64_t position;

  std::string text(std::string_view array) const {
    return fmt::format("{}[layer {}, token {}, position {}]", array, layer, token, position);
  }
};

/// A row is one token of one layer; `sorted` is scratch.
void require_row(const LayeredTrace& trace, const std::string& path, std::int64_t row,
                 std::vector<std::int32_t>& sorted) {
  const auto first = trace.expert_ids.begin() + row * trace.top_k;
  const auto place = [&](std::int64_t k) {
    return Place{trace.layers[static_cast<std::size_t>(row / trace.num_tokens)], row % trace.num_tokens, k};
  };
  for (std::int64_t k = 0; k < trace.top_k; ++k) {
    if (first[k] < 0 || first[k] >= trace.num_experts) {
      throw FileError(path, place(k).text("expert_ids"),
                      fmt::format("{}: must be in [0, {})", first[k], trace.num_experts));
    }
    const auto at = static_cast<std::size_t>(row * trace.top_k + k);
    if (!trace.gates.empty() && !std::isfinite(trace.gates[at])) {
      throw FileError(path, place(k).text("gates"), fmt::format("{}: must be finite", trace.gates[at]));
    }
  }
  sorted.assign(first, first + trace.top_k);
  std::ranges::sort(sorted);
  if (const auto twin = std::ranges::adjacent_find(sorted); twin != sorted.end()) {
    const auto again =
        std::find(std::find(first, first + trace.top_k, *twin) + 1, first + trace.top_k, *twin);
    throw FileError(path, place(again - first).text("expert_ids"),
                    fmt::format("{}: stands there twice; a token's experts are distinct", *twin));
  }
}

}  // namespace

void LayeredTrace::validate(const std::string& path) const {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  const auto require = [&](const char* field, std::int64_t value) {
    if (value < 1 || value >= kLimit) {
      throw FileError(path, field, fmt::format("{}: must be in [1, 2^31)", value));
    }
  };
  require("num_tokens", num_tokens);
  require("top_k", top_k);
  require("num_experts", num_experts);
  require("layers", std::ssize(layers));
  if (top_k > num_experts) {
    throw FileError(path, "top_k", fmt::format("{}: must not exceed num_experts = {}", top_k, num_experts));
  }
  std::vector<std::int64_t> sorted = layers;
  std::ranges::sort(sorted);
  if (sorted.front() < 0 || sorted.back() >= kLimit) {
    throw FileError(
        path, "layers",
        fmt::format("{}: must be in [0, 2^31)", sorted.front() < 0 ? sorted.front() : sorted.back()));
  }
  if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end()) {
    throw FileError(path, "layers", fmt::format("{}: stands there twice", *twice));
  }
  // In floating point: extents that are valid alone may overflow together.
  const double pairs =
      static_cast<double>(num_tokens) * static_cast<double>(top_k) * static_cast<double>(layers.size());
  if (pairs != static_cast<double>(expert_ids.size()) ||
      (!gates.empty() && gates.size() != expert_ids.size())) {
    throw FileError(path, "expert_ids",
                    fmt::format("{} ids and {} gates do not fill {} layers x {} tokens x {}",
                                expert_ids.size(), gates.size(), layers.size(), num_tokens, top_k));
  }
  std::vector<std::int32_t> scratch;
  for (std::int64_t row = 0; row < std::ssize(layers) * num_tokens; ++row) {
    require_row(*this, path, row, scratch);
  }
}

}  // namespace moescope
