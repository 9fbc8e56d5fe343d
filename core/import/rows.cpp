#include "core/import/rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "core/base/error.hpp"
#include "core/import/arrays.hpp"

namespace moescope::detail {
namespace {

void require_finite(const ImportSource& source, const LogitRows& rows, const RawRouting& routing) {
  for (std::size_t i = 0; i < rows.logits.size(); ++i) {
    if (!std::isfinite(rows.logits[i])) {
      const auto row = static_cast<std::int64_t>(i) / rows.num_experts;
      throw FileError(source.path,
                      fmt::format("{}[layer {}, token {}, expert {}]", rows.name, row / routing.num_tokens,
                                  row % routing.num_tokens, static_cast<std::int64_t>(i) % rows.num_experts),
                      fmt::format("{}: must be finite", rows.logits[i]));
    }
  }
}

}  // namespace

void select_rows(const ImportSource& source, const LogitRows& rows, const ImportOptions& options,
                 RawRouting& routing) {
  const std::int64_t k = options.top_k.value_or(routing.top_k);
  if (k < 1 || k > rows.num_experts) {
    throw InvalidArgument(
        "top_k", fmt::to_string(k),
        fmt::format("must be in [1, {}], the experts of {}", rows.num_experts, source.path));
  }
  require_finite(source, rows, routing);
  const ScoreMode mode = options.scores.value_or(ScoreMode::kSoftmax);
  const auto width = static_cast<std::size_t>(k);
  const auto experts = static_cast<std::size_t>(rows.num_experts);
  const std::size_t count = rows.logits.size() / experts;
  routing.top_k = k;
  routing.num_experts = rows.num_experts;
  routing.gate_mode = to_string(mode);
  routing.ids.resize(count * width);
  routing.gates.resize(count * width);
  std::vector<std::int32_t> ids(width);
  for (std::size_t row = 0; row < count; ++row) {
    const std::span<const float> logits = std::span(rows.logits).subspan(row * experts, experts);
    if (auto tied = select_top_k(logits, ids); !tied.empty()) {
      routing.ties.emplace(static_cast<std::int64_t>(row), std::move(tied));
    }
    std::copy(ids.begin(), ids.end(), routing.ids.begin() + static_cast<std::ptrdiff_t>(row * width));
    make_gates(logits, ids, mode, std::span(routing.gates).subspan(row * width, width));
  }
  routing.notes.push_back(
      fmt::format("top {} of {} logits, gates {}{}; {} of {} rows have a tie at the last place, "
                  "where the lower id was taken",
                  k, rows.num_experts, routing.gate_mode, options.scores ? "" : " (--scores names others)",
                  routing.ties.size(), count));
}

void shape_flat(const ImportSource& source, std::vector<std::int64_t> ids, const ImportOptions& options,
                RawRouting& routing) {
  if (!options.top_k) {
    throw InvalidArgument(
        "top_k", "none",
        fmt::format("{} is a list of {} ids without axes: --top-k says how many are a token's", source.path,
                    ids.size()));
  }
  const std::int64_t k = *options.top_k;
  const auto layers = std::max<std::int64_t>(1, std::ssize(options.layers));
  if (k < 1 || k > std::ssize(ids) || layers > std::ssize(ids) / k || std::ssize(ids) % (k * layers) != 0) {
    throw InvalidArgument("top_k", fmt::to_string(k),
                          fmt::format("{} holds {} ids, no multiple of {} layers x top_k (--layers names the "
                                      "layers where there are several)",
                                      source.path, ids.size(), layers));
  }
  const std::int64_t tokens = std::ssize(ids) / (k * layers);
  Layout layout;
  if (layers == 1) {
    layout = {1, tokens, k, {tokens * k, k, 1}, ""};
  } else if (options.axes == "layers,tokens,k") {
    layout = {layers, tokens, k, {tokens * k, k, 1}, ""};
  } else if (options.axes.empty() || options.axes == "tokens,layers,k") {
    layout = {layers, tokens, k, {k, layers * k, 1}, ""};
  } else {
    throw InvalidArgument("axes", options.axes, "of a flat list must be tokens,layers,k or layers,tokens,k");
  }
  routing.num_layers = layers;
  routing.num_tokens = tokens;
  routing.top_k = k;
  routing.ids = ordered(ids, layout);
  if (!routing.gates.empty()) {
    routing.gates = ordered(routing.gates, layout);
  }
  routing.notes.push_back(fmt::format("{} ids in a row: {} layers, {} tokens, K {}{}", ids.size(), layers,
                                      tokens, k,
                                      layers == 1            ? ""
                                      : options.axes.empty() ? "; a token's layers side by side (--axes "
                                                               "layers,tokens,k is the other way)"
                                                             : " (axes as asked for)"));
}

}  // namespace moescope::detail
