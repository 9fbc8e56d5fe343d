#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/import/top_k.hpp"
#include "core/workload/layered_trace.hpp"

/// Routing as engines, training frameworks and scripts write it, made into one trace.
namespace moescope {

/// What the files themselves do not say. What is empty is taken from them.
struct ImportOptions {
  std::string format;                       ///< of import_formats(); empty: recognised
  std::string axes;                         ///< "layers,tokens,k" in the order of the array; empty: see notes
  std::map<std::string, std::string> keys;  ///< "expert_ids", "gates" or "logits" to the file's own name
  std::optional<std::int64_t> top_k;
  std::optional<std::int64_t> num_experts;
  std::optional<std::int64_t> num_layers;  ///< that can route at all: tells axes apart
  std::vector<std::int64_t> layers;        ///< numbers of the layers, in the order of the file
  std::optional<std::int64_t> padding;     ///< id that stands for no expert
  std::optional<ScoreMode> scores;         ///< of gates taken from logits; default softmax
  std::string block = "decoder";           ///< Megatron: decoder, or mtp0, mtp1, ...
};

/// A kind of file that can be imported.
struct ImportFormat {
  std::string name;   ///< as --format takes it
  std::string about;  ///< a line for help
};
std::vector<ImportFormat> import_formats();

/// A trace, and what was understood on the way: lines for people, in order.
struct ImportedTrace {
  LayeredTrace trace;
  std::vector<std::string> notes;
  /// Of routing that was taken from logits: experts that share the last place, by row (layer index * tokens +
  /// token), where more of them than places had the same logit.
  std::map<std::int64_t, std::vector<std::int32_t>> ties;
};

/// Several files are parts of one batch: their layers stand side by side, each with the same tokens. A folder
/// stands for its Megatron traces. Throws FileError for what is no routing, naming field, place and value,
/// and for what is ambiguous, saying what would do; InvalidArgument for options that do not fit the files.
ImportedTrace import_trace(const std::vector<std::filesystem::path>& files, const ImportOptions& options);

/// Rows (a token of a layer) of two traces of one batch, compared as sets; `other` may hold more tokens.
struct TraceComparison {
  std::int64_t rows = 0;
  std::int64_t tied_rows = 0;  ///< rows whose last place is shared in `ours`
  std::int64_t equal = 0;
  std::int64_t equal_but_ties = 0;  ///< differ, but only in experts that share the last place
  std::int64_t different = 0;
  std::string first_different;  ///< "layer 2, token 17: 3 5 here, 3 9 there"
};
/// Throws InvalidArgument when layers, top_k or num_experts differ, or `other` has fewer tokens.
TraceComparison compare_traces(const ImportedTrace& ours, const LayeredTrace& other);

}  // namespace moescope
