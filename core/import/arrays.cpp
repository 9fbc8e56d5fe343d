#include "core/import/arrays.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/workload/workload_files.hpp"

namespace moescope::detail {
namespace {

/// More layers than any model has, fewer tokens than any batch that is worth a trace.
constexpr std::int64_t kMostLayers = 256;

/// Names in use for one thing; sources: vLLM and SGLang (routed_experts, topk_ids), transformers
/// (router_logits), FLAME-MoE-Traces (indices, scores), Megatron-Core (top_indices).
struct Names {
  std::string_view what;
  std::vector<std::string_view> names;
};

const Names& names_of(std::string_view what) {
  static const std::array<Names, 3> kNames = {
      {{"expert_ids",
        {"expert_ids", "topk_ids", "top_k_ids", "routed_experts", "top_indices", "topk_indices", "indices",
         "selected_experts", "expert_indices"}},
       {"gates",
        {"gates", "topk_weights", "routing_weights", "expert_weights", "topk_scores", "top_scores",
         "scores"}},
       {"logits", {"router_logits", "logits", "gate_logits"}}}};
  const auto* found = std::ranges::find(kNames, what, &Names::what);
  if (found == kNames.end()) {
    throw InternalError(fmt::format("{} is no array of a trace", what));
  }
  return *found;
}

/// The order of "layers", "tokens" and `last` that the words name, as positions of the array's axes.
std::array<std::size_t, 3> parse_axes(const std::string& axes, std::string_view last, std::size_t rank) {
  std::vector<std::string> words;
  std::string_view left = axes;
  while (true) {
    const auto comma = left.find(',');
    words.emplace_back(left.substr(0, comma));
    if (comma == std::string_view::npos) {
      break;
    }
    left.remove_prefix(comma + 1);
  }
  std::array<std::size_t, 3> position{};
  const std::array<std::string_view, 3> wanted = {"layers", "tokens", last};
  const std::size_t first = rank == 2 ? 1 : 0;  // a matrix has no layers
  bool fits = words.size() == rank;
  for (std::size_t i = first; i < wanted.size(); ++i) {
    // K and experts are the same axis of ids and of logits: either name will do.
    const auto found = std::ranges::find_if(words, [&](const std::string& word) {
      return word == wanted[i] || (i == 2 && (word == "k" || word == "experts"));
    });
    fits = fits && found != words.end();
    position[i] = fits ? static_cast<std::size_t>(found - words.begin()) : 0;
  }
  if (!fits) {
    throw InvalidArgument("axes", axes,
                          rank == 2
                              ? fmt::format("must be tokens,{0} or {0},tokens of this matrix", last)
                              : fmt::format("must be layers, tokens and {} in the order of the array", last));
  }
  return position;
}

/// Whether the first of three axes is layers, or the second; throws when both may be.
std::array<std::size_t, 3> guess_axes(const ImportSource& source, const std::string& name,
                                      const FileArray& array, std::string_view last, std::int64_t num_numbers,
                                      const ImportOptions& options, std::string& why) {
  constexpr std::array<std::size_t, 3> kLayersFirst = {0, 1, 2};
  constexpr std::array<std::size_t, 3> kTokensFirst = {1, 0, 2};
  const std::int64_t first = array.shape[0];
  const std::int64_t second = array.shape[1];
  if (num_numbers != 0 && (first == num_numbers) != (second == num_numbers)) {
    why = fmt::format("the file numbers {} layers", num_numbers);
    return first == num_numbers ? kLayersFirst : kTokensFirst;
  }
  if (options.num_layers && (first == *options.num_layers) != (second == *options.num_layers)) {
    why = fmt::format("the model has {} layers with experts", *options.num_layers);
    return first == *options.num_layers ? kLayersFirst : kTokensFirst;
  }
  if (name == "routed_experts") {
    why = "vLLM and SGLang write routed_experts so";
    return kTokensFirst;
  }
  if ((first <= kMostLayers) != (second <= kMostLayers)) {
    why = fmt::format("no model has {} layers", std::max(first, second));
    return first <= kMostLayers ? kLayersFirst : kTokensFirst;
  }
  throw FileError(source.path, name.empty() ? "array" : name,
                  fmt::format("shape {}: may be {} layers of {} tokens or the other way round; --axes "
                              "layers,tokens,{} or --axes tokens,layers,{} says which",
                              shape_text(array.shape), first, second, last, last));
}

}  // namespace

std::string routing_key(const ImportSource& source, const std::string& what, const ImportOptions& options) {
  if (source.arrays->has("")) {
    return "";
  }
  if (auto key = find_key(source, what, options)) {
    return *std::move(key);
  }
  throw FileError(
      source.path, what,
      fmt::format("no array of this name or another in use; the file holds {}; --key {}=NAME says "
                  "which it is",
                  arrays_text(*source.arrays), what));
}

bool is_float(const FileArray& array) {
  return array.dtype == "f16" || array.dtype == "bf16" || array.dtype == "f32" || array.dtype == "f64";
}

std::string arrays_text(const ArrayFile& file) {
  std::string text;
  constexpr std::size_t kMost = 8;
  std::size_t count = 0;
  for (const auto& [name, array] : file.arrays) {
    if (++count > kMost) {
      return fmt::format("{}, ... {} in all", text, file.arrays.size());
    }
    text += fmt::format("{}{} {} {}", text.empty() ? "" : ", ", name.empty() ? "one array" : printable(name),
                        array.dtype, shape_text(array.shape));
  }
  return text.empty() ? "nothing that can be read" : text;
}

std::optional<std::string> find_key(const ImportSource& source, const std::string& what,
                                    const ImportOptions& options) {
  const ArrayFile& file = *source.arrays;
  if (const auto asked = options.keys.find(what); asked != options.keys.end()) {
    if (!file.has(asked->second)) {
      throw FileError(source.path, asked->second,
                      fmt::format("is not there for {}; the file holds {}", what, arrays_text(file)));
    }
    return asked->second;
  }
  std::vector<std::string> found;
  for (const std::string_view name : names_of(what).names) {
    const bool taken = std::ranges::any_of(
        options.keys, [&](const auto& key) { return key.first != what && key.second == name; });
    if (file.has(std::string(name)) && !taken) {
      found.emplace_back(name);
    }
  }
  if (found.size() > 1) {
    throw FileError(
        source.path, what,
        fmt::format("may be any of {}; --key {}={} says which", fmt::join(found, ", "), what, found.front()));
  }
  if (found.empty()) {
    return std::nullopt;
  }
  return found.front();
}

Layout find_layout(const ImportSource& source, const std::string& name, const FileArray& array,
                   std::string_view last, const ImportOptions& options, std::int64_t num_numbers) {
  const std::string shown = name.empty() ? "array" : printable(name);
  const std::size_t rank = array.shape.size();
  if (rank != 2 && rank != 3) {
    throw FileError(source.path, shown,
                    fmt::format("shape {}: must be [tokens, {}], or with layers as a third axis; one axis "
                                "alone is --format flat with --top-k",
                                shape_text(array.shape), last));
  }
  if (std::ranges::min(array.shape) < 1) {
    throw FileError(source.path, shown, fmt::format("shape {}: is empty", shape_text(array.shape)));
  }
  Layout layout;
  std::array<std::size_t, 3> position = {0, rank - 2, rank - 1};
  std::string why;
  if (!options.axes.empty()) {
    position = parse_axes(options.axes, last, rank);
    why = "as asked for";
  } else if (rank == 3) {
    position = guess_axes(source, name, array, last, num_numbers, options, why);
  }
  std::array<std::int64_t, 3> stride{};
  std::int64_t step = 1;
  for (std::size_t axis = rank; axis-- > 0;) {
    stride[axis] = step;
    step *= array.shape[axis];
  }
  layout.num_layers = rank == 3 ? array.shape[position[0]] : 1;
  layout.num_tokens = array.shape[position[1]];
  layout.last = array.shape[position[2]];
  layout.stride = {rank == 3 ? stride[position[0]] : 0, stride[position[1]], stride[position[2]]};
  if (rank == 3) {
    layout.note = fmt::format("{} {}: {} layers, {} tokens, {} {} ({})", shown, shape_text(array.shape),
                              layout.num_layers, layout.num_tokens, last, layout.last, why);
  }
  return layout;
}

std::int64_t count_numbers(const ImportSource& source) {
  if (!source.arrays->has("layers")) {
    return 0;
  }
  const FileArray& numbers = source.arrays->get(source.path, "layers");
  return numbers.shape.size() == 1 ? numbers.shape[0] : 0;
}

void take_statements(const ImportSource& source, RawRouting& routing) {
  const ArrayFile& file = *source.arrays;
  if (file.has("layers")) {
    const FileArray& numbers = file.get(source.path, "layers");
    if (numbers.shape.size() == 1) {
      routing.layers = numbers.to_integers(source.path, "layers");
    }
  } else if (file.has("layer") && routing.num_layers == 1) {
    // One number, or one a token: columns of one layer.
    const std::vector<std::int64_t> numbers =
        file.get(source.path, "layer").to_integers(source.path, "layer");
    const auto other = std::ranges::find_if(numbers, [&](std::int64_t n) { return n != numbers.front(); });
    if (other != numbers.end()) {
      throw FileError(source.path, fmt::format("layer[{}]", other - numbers.begin()),
                      fmt::format("{}: the rows before are of layer {}; a file of rows holds one layer",
                                  *other, numbers.front()));
    }
    if (!numbers.empty()) {
      routing.layers = {numbers.front()};
    }
  }
  routing.num_experts = metadata_extent(file, source.path, "num_experts").value_or(0);
  routing.system = metadata_text(file, source.path, "system");
  routing.gate_mode = metadata_text(file, source.path, "gate_mode");
  if (file.has("padding")) {
    const FileArray& padding = file.get(source.path, "padding");
    require_extents(padding, source.path, "padding", {}, "one number");
    routing.padding = padding.to_integers(source.path, "padding").front();
  }
}

}  // namespace moescope::detail
