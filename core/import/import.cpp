#include "core/import/import.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/reader.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using detail::ImportSource;
using detail::kLimit;
using detail::RawRouting;
using detail::Reader;

const std::vector<Reader>& readers() {
  static const std::vector<Reader> kReaders = {
      {{"ids", "arrays of expert ids, [tokens, K] or with layers, in .npy, .npz or .safetensors"},
       detail::has_ids,
       detail::read_ids},
      {{"logits", "router logits, [tokens, experts] or with layers: the top K is taken here"},
       detail::has_logits,
       detail::read_logits},
      {{"flat", "ids without axes: a list in .npy, or bare int32 in .bin or .i32"},
       detail::is_flat,
       detail::read_flat},
      {{"packed", "(id << 16) | bfloat16 weight in int32 arrays or lists; only by --format"},
       nullptr,
       detail::read_packed},
      {{"csv", "columns layer, expert: a row for each expert a token took"},
       detail::is_csv,
       detail::read_csv},
      {{"megatron", "Megatron-Core's router_trace_rank*.jsonl, a file or the folder, with its logits"},
       detail::is_megatron,
       detail::read_megatron},
      {{"router_trace", "RouterTrace JSON: selections [tokens][layers][K]"},
       detail::is_router_trace,
       detail::read_router_trace},
  };
  return kReaders;
}

std::string format_names() {
  std::vector<std::string> names;
  for (const Reader& reader : readers()) {
    names.push_back(reader.format.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

ImportSource open_source(const fs::path& file) {
  ImportSource source{.file = file, .path = file.string(), .head = {}, .is_folder = false, .arrays = {}};
  std::error_code error;
  source.is_folder = fs::is_directory(file, error);
  const std::string extension = file.extension().string();
  if (source.is_folder) {
    return source;
  }
  if (extension == ".npy" || extension == ".npz" || extension == ".safetensors") {
    source.arrays = read_array_file(file);
    return source;
  }
  constexpr std::uint64_t kHeadBytes = 4096;
  const RegularFile stream(file);
  source.head.resize(std::min(kHeadBytes, stream.bytes()));
  stream.read_at(0, std::as_writable_bytes(std::span(source.head)));
  require_content(std::as_bytes(std::span(source.head)), file);
  return source;
}

const Reader& find_reader(const ImportSource& source, const ImportOptions& options) {
  if (!options.format.empty()) {
    const auto found = std::ranges::find_if(
        readers(), [&](const Reader& reader) { return reader.format.name == options.format; });
    if (found == readers().end()) {
      throw InvalidArgument("format", options.format, fmt::format("must be one of {}", format_names()));
    }
    const bool wants_arrays = options.format == "ids" || options.format == "logits";
    if (wants_arrays && !source.arrays) {
      throw InvalidArgument("format", options.format,
                            fmt::format("{} is no .npy, .npz or .safetensors file", source.path));
    }
    return *found;
  }
  for (const Reader& reader : readers()) {
    if (reader.recognises != nullptr && reader.recognises(source)) {
      return reader;
    }
  }
  if (source.arrays) {
    // By key it is one of these; without one the reader says what is there.
    return readers()[options.keys.contains("logits") && !options.keys.contains("expert_ids") ? 1 : 0];
  }
  throw FileError(
      source.path, "",
      fmt::format("is of no format that is known here, {} '{}'; --format takes {}; Parquet: a line of "
                  "Python makes an .npz of it (docs, \"Import\")",
                  source.is_folder ? "a folder without router_trace_rank*.jsonl" : "begins with",
                  detail::printable(source.head, 24), format_names()));
}

/// Tokens without experts, at the end of a batch or between sequences, leave the trace; a token that lacks
/// some of its experts, or has them in some layers alone, cannot be in one.
void drop_padding(const std::string& path, RawRouting& routing, std::int64_t padding) {
  const std::int64_t k = routing.top_k;
  const auto padded = [&](std::int64_t layer, std::int64_t token) {
    const auto first = routing.ids.begin() + (layer * routing.num_tokens + token) * k;
    return std::count(first, first + k, padding);
  };
  std::vector<bool> keep(static_cast<std::size_t>(routing.num_tokens));
  std::int64_t kept = 0;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const std::int64_t count = padded(0, token);
    for (std::int64_t layer = 0; layer < routing.num_layers; ++layer) {
      const std::int64_t here = padded(layer, token);
      if (here != count || (here != 0 && here != k)) {
        throw FileError(
            path, fmt::format("expert_ids[layer {}, token {}]", layer, token),
            fmt::format("{} of {} are padding, {} in layer 0: a token must have all its experts in "
                        "every layer, or none in any",
                        here, k, count));
      }
    }
    keep[static_cast<std::size_t>(token)] = count == 0;
    kept += count == 0 ? 1 : 0;
  }
  if (kept == routing.num_tokens) {
    return;
  }
  RawRouting less;
  less.ids.reserve(static_cast<std::size_t>(routing.num_layers * kept * k));
  std::map<std::int64_t, std::vector<std::int32_t>> ties;
  std::int64_t row = 0;
  for (std::int64_t layer = 0; layer < routing.num_layers; ++layer) {
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      if (!keep[static_cast<std::size_t>(token)]) {
        continue;
      }
      const std::int64_t old_row = layer * routing.num_tokens + token;
      const auto first = old_row * k;
      less.ids.insert(less.ids.end(), routing.ids.begin() + first, routing.ids.begin() + first + k);
      if (!routing.gates.empty()) {
        less.gates.insert(less.gates.end(), routing.gates.begin() + first, routing.gates.begin() + first + k);
      }
      if (const auto tied = routing.ties.find(old_row); tied != routing.ties.end()) {
        ties.emplace(row, std::move(tied->second));
      }
      ++row;
    }
  }
  routing.notes.push_back(fmt::format("{} of {} tokens are padding ({}) and left out",
                                      routing.num_tokens - kept, routing.num_tokens, padding));
  routing.ids = std::move(less.ids);
  routing.gates = std::move(less.gates);
  routing.ties = std::move(ties);
  routing.num_tokens = kept;
}

RawRouting read_one(const ImportSource& source, const ImportOptions& options) {
  const Reader& reader = find_reader(source, options);
  RawRouting routing = reader.read(source, options);
  if (options.top_k && *options.top_k != routing.top_k) {
    throw InvalidArgument("top_k", fmt::to_string(*options.top_k),
                          fmt::format("{} has {}", source.path, routing.top_k));
  }
  for (std::string& note : routing.notes) {
    note = fmt::format("{}: {}", detail::printable(source.path), note);
  }
  routing.notes.insert(routing.notes.begin(),
                       fmt::format("{}: format {} ({})", detail::printable(source.path), reader.format.name,
                                   options.format.empty() ? "recognised" : "as asked for"));
  if (const auto padding = options.padding ? options.padding : routing.padding) {
    drop_padding(source.path, routing, *padding);
  }
  return routing;
}

/// `next` as further layers of the same batch.
void append(RawRouting& all, RawRouting next, const std::string& path) {
  if (next.num_tokens != all.num_tokens || next.top_k != all.top_k) {
    throw FileError(path, "expert_ids",
                    fmt::format("{} tokens, K {}: the files before have {} tokens, K {}", next.num_tokens,
                                next.top_k, all.num_tokens, all.top_k));
  }
  if (next.gates.empty() != all.gates.empty()) {
    throw FileError(
        path, "gates",
        next.gates.empty() ? "missing; the files before have them" : "the files before have none");
  }
  if (next.num_experts != all.num_experts) {
    throw FileError(path, "num_experts",
                    fmt::format("{}: the files before have {}", next.num_experts, all.num_experts));
  }
  const std::int64_t rows = all.num_layers * all.num_tokens;
  all.num_layers += next.num_layers;
  all.ids.insert(all.ids.end(), next.ids.begin(), next.ids.end());
  all.gates.insert(all.gates.end(), next.gates.begin(), next.gates.end());
  all.layers.insert(all.layers.end(), next.layers.begin(), next.layers.end());
  all.notes.insert(all.notes.end(), next.notes.begin(), next.notes.end());
  for (auto& [row, tied] : next.ties) {
    all.ties.emplace(rows + row, std::move(tied));
  }
}

std::vector<std::int64_t> number_layers(const RawRouting& routing, const ImportOptions& options,
                                        const std::string& path, std::vector<std::string>& notes) {
  const bool stated = std::ssize(routing.layers) == routing.num_layers;
  if (!options.layers.empty()) {
    if (std::ssize(options.layers) != routing.num_layers) {
      throw InvalidArgument("layers", fmt::format("{}", fmt::join(options.layers, ",")),
                            fmt::format("{} holds {} layers", path, routing.num_layers));
    }
    return options.layers;
  }
  if (stated) {
    return routing.layers;
  }
  std::vector<std::int64_t> numbers(static_cast<std::size_t>(routing.num_layers));
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = static_cast<std::int64_t>(i);
  }
  notes.push_back(fmt::format("layers are numbered 0 to {}: nothing says otherwise (--layers does)",
                              routing.num_layers - 1));
  return numbers;
}

std::int64_t find_num_experts(const RawRouting& routing, const ImportOptions& options,
                              const std::string& path) {
  if (options.num_experts && routing.num_experts != 0 && *options.num_experts != routing.num_experts) {
    throw InvalidArgument("num_experts", fmt::to_string(*options.num_experts),
                          fmt::format("{} has {}", path, routing.num_experts));
  }
  if (options.num_experts) {
    return *options.num_experts;
  }
  if (routing.num_experts == 0) {
    throw InvalidArgument("num_experts", "none",
                          fmt::format("{} does not say it: must be given; the largest id is {}", path,
                                      routing.ids.empty() ? 0 : *std::ranges::max_element(routing.ids)));
  }
  return routing.num_experts;
}

}  // namespace

std::vector<ImportFormat> import_formats() {
  std::vector<ImportFormat> formats;
  for (const Reader& reader : readers()) {
    formats.push_back(reader.format);
  }
  return formats;
}

namespace detail {

ImportedTrace finish_import(RawRouting routing, const std::string& path, const ImportOptions& options) {
  ImportedTrace imported;
  LayeredTrace& trace = imported.trace;
  trace.num_experts = find_num_experts(routing, options, path);
  trace.layers = number_layers(routing, options, path, routing.notes);
  trace.num_tokens = routing.num_tokens;
  trace.top_k = routing.top_k;
  trace.system = routing.system;
  trace.gate_mode = routing.gate_mode;
  trace.expert_ids.reserve(routing.ids.size());
  for (std::size_t i = 0; i < routing.ids.size(); ++i) {
    const std::int64_t id = routing.ids[i];
    if (id < 0 || id >= trace.num_experts || id >= kLimit) {
      const auto row = static_cast<std::int64_t>(i) / trace.top_k;
      throw FileError(path,
                      fmt::format("expert_ids[layer {}, token {}, position {}]",
                                  trace.layers[static_cast<std::size_t>(row / trace.num_tokens)],
                                  row % trace.num_tokens, static_cast<std::int64_t>(i) % trace.top_k),
                      fmt::format("{}: must be in [0, {}){}", id, trace.num_experts,
                                  id < 0 ? fmt::format("; --padding {} leaves tokens without experts out", id)
                                  : id >= 1 << 13 ? "; --format packed takes (id << 16) | weight apart"
                                                  : ""));
    }
    trace.expert_ids.push_back(static_cast<std::int32_t>(id));
  }
  trace.gates = std::move(routing.gates);
  trace.validate(path);
  imported.notes = std::move(routing.notes);
  imported.ties = std::move(routing.ties);
  return imported;
}

ImportedTrace import_source(const ImportSource& source, const ImportOptions& options) {
  return finish_import(read_one(source, options), source.path, options);
}

}  // namespace detail

ImportedTrace import_trace(const std::vector<fs::path>& files, const ImportOptions& options) {
  if (files.empty()) {
    throw InvalidArgument("file", "none", "import needs one at least");
  }
  const std::string path =
      files.size() == 1 ? files.front().string() : fmt::format("{} and others", files.front().string());
  RawRouting routing = read_one(open_source(files.front()), options);
  const bool stated = std::ssize(routing.layers) == routing.num_layers;
  for (std::size_t i = 1; i < files.size(); ++i) {
    RawRouting next = read_one(open_source(files[i]), options);
    if (stated != (std::ssize(next.layers) == next.num_layers)) {
      throw FileError(files[i].string(), "layers",
                      "some of the files say which layers they hold and others do not: --layers names all");
    }
    append(routing, std::move(next), files[i].string());
  }
  return detail::finish_import(std::move(routing), path, options);
}

}  // namespace moescope
