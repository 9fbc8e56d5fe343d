#include "core/files/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

using nlohmann::json;

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit (safetensors README)

struct Entry {
  std::string name;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::optional<FileError> unreadable;  ///< of a dtype that nothing here computes with
};

std::string dtype_name(std::string_view spelled) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 13> kNames = {{
      {"BOOL", "bool"},
      {"U8", "u8"},
      {"I8", "i8"},
      {"I16", "i16"},
      {"U16", "u16"},
      {"I32", "i32"},
      {"U32", "u32"},
      {"I64", "i64"},
      {"U64", "u64"},
      {"F16", "f16"},
      {"BF16", "bf16"},
      {"F32", "f32"},
      {"F64", "f64"},
  }};
  for (const auto& [file_name, name] : kNames) {
    if (file_name == spelled) {
      return std::string(name);
    }
  }
  return {};
}

/// Member `key` of a tensor's entry; an object was checked before.
const json& member(const json& entry, const char* key, std::string_view path, const std::string& field) {
  const auto found = entry.find(key);
  if (found == entry.end()) {
    throw FileError(path, field, fmt::format("{} is missing", key));
  }
  return *found;
}

std::uint64_t natural(const json& value, std::string_view path, const std::string& field) {
  constexpr auto kMax = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > kMax) {
    throw FileError(path, field, fmt::format("{}: must be an integer in [0, 2^63)", shown(value)));
  }
  return value.get<std::uint64_t>();
}

/// Fills dtype, shape and extent of one tensor.
Entry parse_entry(const std::string& name, const json& value, std::uint64_t data_bytes, std::string_view path,
                  FileArray& array) {
  const std::string field = detail::printable(name);
  if (!value.is_object()) {
    throw FileError(path, field, fmt::format("{}: must be an object", shown(value)));
  }
  const json& dtype = member(value, "dtype", path, field);
  if (!dtype.is_string()) {
    throw FileError(path, field + ".dtype", fmt::format("{}: must be a string", shown(dtype)));
  }
  array.dtype = dtype_name(dtype.get_ref<const std::string&>());
  const json& shape = member(value, "shape", path, field);
  if (!shape.is_array()) {
    throw FileError(path, field + ".shape", fmt::format("{}: must be an array", shown(shape)));
  }
  for (const json& extent : shape) {
    array.shape.push_back(static_cast<std::int64_t>(natural(extent, path, field + ".shape")));
  }
  const json& offsets = member(value, "data_offsets", path, field);
  if (!offsets.is_array() || offsets.size() != 2) {
    throw FileError(path, field + ".data_offsets", fmt::format("{}: must be [begin, end]", shown(offsets)));
  }
  Entry entry{name, natural(offsets[0], path, field + ".data_offsets"),
              natural(offsets[1], path, field + ".data_offsets"), std::nullopt};
  if (entry.begin > entry.end || entry.end > data_bytes) {
    throw FileError(
        path, field + ".data_offsets",
        fmt::format("[{}, {}] runs past the {} bytes of data", entry.begin, entry.end, data_bytes));
  }
  if (array.dtype.empty()) {
    entry.unreadable.emplace(
        path, field + ".dtype",
        fmt::format("{}: must be one of BOOL U8 I8 I16 U16 I32 U32 I64 U64 F16 BF16 F32 F64", shown(dtype)));
    return entry;
  }
  const auto bytes = detail::checked_bytes(array.shape, detail::file_dtype_bytes(array.dtype));
  if (!bytes) {
    throw FileError(path, field + ".shape",
                    fmt::format("{} {} overflows int64", array.dtype, detail::shape_text(array.shape)));
  }
  if (entry.end - entry.begin != static_cast<std::uint64_t>(*bytes)) {
    throw FileError(
        path, field + ".data_offsets",
        fmt::format("[{}, {}] holds {} bytes, {} {} needs {}", entry.begin, entry.end,
                    entry.end - entry.begin, array.dtype, detail::shape_text(array.shape), *bytes));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value, std::string_view path) {
  if (!value.is_object()) {
    throw FileError(path, "__metadata__", fmt::format("{}: must be an object", shown(value)));
  }
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      throw FileError(path, "__metadata__." + detail::printable(key),
                      fmt::format("{}: must be a string", shown(text)));
    }
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

/// The tensors must tile the data exactly: no byte twice, none left out.
void require_tiling(std::vector<Entry>& entries, std::uint64_t data_bytes, std::string_view path) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      throw FileError(path, detail::printable(entry.name) + ".data_offsets",
                      fmt::format("begins at {} where {} was expected: tensors {}", entry.begin, covered,
                                  entry.begin < covered ? "overlap" : "leave a hole"));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    throw FileError(path, "data", fmt::format("{} bytes, of which tensors cover {}", data_bytes, covered));
  }
}

}  // namespace

ArrayFile parse_safetensors(std::span<const std::byte> file, std::string_view path) {
  if (file.size() < kLengthBytes) {
    throw FileError(path, "header length",
                    fmt::format("file has {} bytes, needs at least {}", file.size(), kLengthBytes));
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    throw FileError(path, "header length",
                    fmt::format("{}: must be at most {}", header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > file.size() - kLengthBytes) {
    throw FileError(path, "header length",
                    fmt::format("{}: runs past the end of the file ({} bytes)", header_bytes, file.size()));
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, header_bytes);
  if (!text.starts_with('{')) {
    throw FileError(path, "header",
                    fmt::format("'{}': must be a JSON object", detail::printable(text.substr(0, 16))));
  }
  const auto header = parse_json<json>(text, {std::string(path), "header"});
  const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);

  ArrayFile result;
  std::vector<Entry> entries;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      result.metadata = parse_metadata(value, path);
    } else {
      entries.push_back(parse_entry(name, value, data.size(), path, result.arrays[name]));
    }
  }
  require_tiling(entries, data.size(), path);
  for (const Entry& entry : entries) {  // copied only once everything is known to fit
    if (entry.unreadable) {
      result.arrays.erase(entry.name);
      result.unreadable.emplace(entry.name, *entry.unreadable);
      continue;
    }
    const auto part = data.subspan(entry.begin, entry.end - entry.begin);
    result.arrays.at(entry.name).bytes.assign(part.begin(), part.end());
  }
  return result;
}

ArrayFile read_safetensors(const std::filesystem::path& file) {
  return parse_safetensors(read_bytes(file), file.string());
}

}  // namespace moescope
