// Ids without axes: a one-dimensional array, or the bare little-endian int32 that engines send (SGLang).
#include <fmt/format.h>

#include <cstring>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/arrays.hpp"
#include "core/import/rows.hpp"

namespace moescope::detail {
namespace {

bool is_bare(const ImportSource& source) {
  return source.file.extension() == ".bin" || source.file.extension() == ".i32";
}

const FileArray* only_list(const ImportSource& source) {
  if (!source.arrays) {
    return nullptr;
  }
  const auto only = source.arrays->arrays.find("");
  return only != source.arrays->arrays.end() && only->second.shape.size() == 1 ? &only->second : nullptr;
}

}  // namespace

bool is_flat(const ImportSource& source) { return is_bare(source) || only_list(source) != nullptr; }

std::vector<std::int64_t> flat_integers(const ImportSource& source, const ImportOptions& options) {
  if (const FileArray* list = only_list(source)) {
    return list->to_integers(source.path, "array");
  }
  if (source.arrays) {  // asked for by name: a list or any shape of an array
    const auto key =
        source.arrays->has("") ? std::optional<std::string>("") : find_key(source, "expert_ids", options);
    if (!key) {
      throw FileError(source.path, "expert_ids",
                      fmt::format("not found; the file holds {}", arrays_text(*source.arrays)));
    }
    return source.arrays->get(source.path, *key).to_integers(source.path, *key);
  }
  const std::vector<std::byte> bytes = read_bytes(source.file);
  if (bytes.empty() || bytes.size() % 4 != 0) {
    throw FileError(source.path, "",
                    fmt::format("{} bytes: must be a multiple of 4, of int32", bytes.size()));
  }
  std::vector<std::int64_t> ids(bytes.size() / 4);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::int32_t id = 0;
    std::memcpy(&id, bytes.data() + 4 * i, 4);
    ids[i] = id;
  }
  return ids;
}

RawRouting read_flat(const ImportSource& source, const ImportOptions& options) {
  RawRouting routing;
  shape_flat(source, flat_integers(source, options), options, routing);
  return routing;
}

}  // namespace moescope::detail
