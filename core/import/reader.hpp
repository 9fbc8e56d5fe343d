#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/safetensors.hpp"
#include "core/import/import.hpp"

/// What the readers of single formats share; not for use outside core/import/.
namespace moescope::detail {

/// Ids, extents and counts of a file are below this.
inline constexpr std::int64_t kLimit = std::int64_t{1} << 31;

/// A file to import; arrays are read once, whoever asks.
struct ImportSource {
  std::filesystem::path file;
  std::string path;  ///< the same for messages
  std::string head;  ///< its first bytes; empty for a folder
  bool is_folder = false;
  std::optional<ArrayFile> arrays;  ///< .npy, .npz, .safetensors
};

/// Routing of one file, as it stands there. ids [layers, tokens, K], row-major.
struct RawRouting {
  std::int64_t num_layers = 1;
  std::int64_t num_tokens = 0;
  std::int64_t top_k = 0;
  std::vector<std::int64_t> ids;
  std::vector<float> gates;             ///< likewise, or empty
  std::vector<std::int64_t> layers;     ///< numbers, where the file says them
  std::int64_t num_experts = 0;         ///< where the file says it
  std::optional<std::int64_t> padding;  ///< likewise
  std::string gate_mode;                ///< likewise
  std::string system;                   ///< likewise
  std::vector<std::string> notes;
  std::map<std::int64_t, std::vector<std::int32_t>> ties;
};

/// One format. All readers throw FileError and InvalidArgument as import_trace() does.
struct Reader {
  ImportFormat format;
  /// Whether it is surely of this format; null: only when asked for by name.
  bool (*recognises)(const ImportSource& source);
  RawRouting (*read)(const ImportSource& source, const ImportOptions& options);
};

/// What was read as a trace; `path` names it in messages. Checks every id.
ImportedTrace finish_import(RawRouting routing, const std::string& path, const ImportOptions& options);
/// import_trace() of one source that is open.
ImportedTrace import_source(const ImportSource& source, const ImportOptions& options);

bool has_ids(const ImportSource& source);
RawRouting read_ids(const ImportSource& source, const ImportOptions& options);  ///< ids_reader.cpp
bool has_logits(const ImportSource& source);
RawRouting read_logits(const ImportSource& source, const ImportOptions& options);  ///< logits_reader.cpp
bool is_flat(const ImportSource& source);
RawRouting read_flat(const ImportSource& source, const ImportOptions& options);  ///< flat_reader.cpp
/// The same list without any shape.
std::vector<std::int64_t> flat_integers(const ImportSource& source, const ImportOptions& options);
RawRouting read_packed(const ImportSource& source, const ImportOptions& options);  ///< packed_reader.cpp
bool is_csv(const ImportSource& source);
RawRouting read_csv(const ImportSource& source, const ImportOptions& options);  ///< csv_reader.cpp
/// The same from memory; for fuzzing and tests.
RawRouting parse_csv(const ImportSource& source, std::string_view text, const ImportOptions& options);
bool is_megatron(const ImportSource& source);
RawRouting read_megatron(const ImportSource& source, const ImportOptions& options);  ///< megatron_reader.cpp
bool is_router_trace(const ImportSource& source);
RawRouting read_router_trace(const ImportSource& source,
                             const ImportOptions& options);  ///< router_trace_reader.cpp
RawRouting parse_router_trace(const ImportSource& source, std::string_view text);

}  // namespace moescope::detail
