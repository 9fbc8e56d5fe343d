// Router logits [tokens, experts], or with layers: the top K of each token is taken here.
#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/import/arrays.hpp"
#include "core/import/rows.hpp"

namespace moescope::detail {

bool has_logits(const ImportSource& source) {
  if (!source.arrays || has_ids(source)) {
    return false;
  }
  if (const auto only = source.arrays->arrays.find(""); only != source.arrays->arrays.end()) {
    return is_float(only->second) && only->second.shape.size() > 1;
  }
  try {
    return find_key(source, "logits", {}).has_value();
  } catch (const FileError&) {
    return true;
  }
}

RawRouting read_logits(const ImportSource& source, const ImportOptions& options) {
  const std::string key = routing_key(source, "logits", options);
  const FileArray& array = source.arrays->get(source.path, key);
  const std::string shown = key.empty() ? "array" : printable(key);
  const Layout layout = find_layout(source, key, array, "experts", options, count_numbers(source));
  if (!options.top_k) {
    throw InvalidArgument("top_k", "none",
                          fmt::format("{} holds logits of {} experts: --top-k says how many "
                                      "a token takes",
                                      source.path, layout.last));
  }
  LogitRows rows;
  rows.logits = ordered(array.to_floats(source.path, shown), layout);
  rows.num_experts = layout.last;
  rows.name = shown;
  RawRouting routing;
  routing.num_layers = layout.num_layers;
  routing.num_tokens = layout.num_tokens;
  select_rows(source, rows, options, routing);
  if (!layout.note.empty()) {
    routing.notes.insert(routing.notes.begin(), layout.note);
  }
  const std::int64_t num_experts = routing.num_experts;
  const std::string gate_mode = routing.gate_mode;
  take_statements(source, routing);
  if (routing.num_experts != 0 && routing.num_experts != num_experts) {
    throw FileError(source.path, "num_experts",
                    fmt::format("{}: {} has logits of {}", routing.num_experts, shown, num_experts));
  }
  routing.num_experts = num_experts;
  routing.gate_mode = gate_mode;
  return routing;
}

}  // namespace moescope::detail
