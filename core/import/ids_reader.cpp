// Arrays of expert ids, [tokens, K] or with layers: .npy, .npz and safetensors (NumPy, vLLM, SGLang,
// FlashInfer).
#include <fmt/format.h>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/import/arrays.hpp"

namespace moescope::detail {

bool has_ids(const ImportSource& source) {
  if (!source.arrays) {
    return false;
  }
  if (const auto only = source.arrays->arrays.find(""); only != source.arrays->arrays.end()) {
    return !is_float(only->second) && only->second.shape.size() > 1;
  }
  // Which of several it is, is asked when it is read: any of them will do here.
  try {
    return find_key(source, "expert_ids", {}).has_value();
  } catch (const FileError&) {
    return true;
  }
}

RawRouting read_ids(const ImportSource& source, const ImportOptions& options) {
  const std::string key = routing_key(source, "expert_ids", options);
  const FileArray& array = source.arrays->get(source.path, key);
  const std::string shown = key.empty() ? "array" : printable(key);
  if (is_float(array)) {
    throw FileError(
        source.path, shown,
        fmt::format("dtype {}: ids must be of an integer type; --format logits takes the top K of "
                    "logits",
                    array.dtype));
  }
  const Layout layout = find_layout(source, key, array, "k", options, count_numbers(source));
  RawRouting routing;
  routing.num_layers = layout.num_layers;
  routing.num_tokens = layout.num_tokens;
  routing.top_k = layout.last;
  routing.ids = ordered(array.to_integers(source.path, shown), layout);
  if (!layout.note.empty()) {
    routing.notes.push_back(layout.note);
  }
  if (const auto gates = find_key(source, "gates", options)) {
    const FileArray& values = source.arrays->get(source.path, *gates);
    if (values.shape != array.shape) {
      throw FileError(source.path, printable(*gates),
                      fmt::format("shape {}: must be {}, that of {}", shape_text(values.shape),
                                  shape_text(array.shape), shown));
    }
    routing.gates = ordered(values.to_floats(source.path, printable(*gates)), layout);
    routing.notes.push_back(fmt::format("gates are {}", printable(*gates)));
  }
  take_statements(source, routing);
  return routing;
}

}  // namespace moescope::detail
