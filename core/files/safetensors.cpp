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
#include "core/base/host_memory.hpp"
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

struct Header {
  ArrayFile file;              ///< dtypes and shapes; no bytes yet
  std::vector<Entry> entries;  ///< in the order of the data
};

/// `file_bytes`: of the whole file, of which `start` holds at least the first eight.
std::uint64_t header_length(std::span<const std::byte> start, std::uint64_t file_bytes,
                            std::string_view path) {
  if (file_bytes < kLengthBytes) {
    throw FileError(path, "header length",
                    fmt::format("file has {} bytes, needs at least {}", file_bytes, kLengthBytes));
  }
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, start.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    throw FileError(path, "header length",
                    fmt::format("{}: must be at most {}", header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > file_bytes - kLengthBytes) {
    throw FileError(path, "header length",
                    fmt::format("{}: runs past the end of the file ({} bytes)", header_bytes, file_bytes));
  }
  return header_bytes;
}

/// Everything there is to check before a byte of data is taken.
Header parse_header(std::string_view text, std::uint64_t data_bytes, std::string_view path) {
  if (!text.starts_with('{')) {
    throw FileError(path, "header",
                    fmt::format("'{}': must be a JSON object", detail::printable(text.substr(0, 16))));
  }
  const auto json_header = parse_json<json>(text, {std::string(path), "header"});
  Header header;
  for (const auto& [name, value] : json_header.items()) {
    if (name == "__metadata__") {
      header.file.metadata = parse_metadata(value, path);
    } else {
      header.entries.push_back(parse_entry(name, value, data_bytes, path, header.file.arrays[name]));
    }
  }
  require_tiling(header.entries, data_bytes, path);
  for (const Entry& entry : header.entries) {
    if (entry.unreadable) {
      header.file.arrays.erase(entry.name);
      header.file.unreadable.emplace(entry.name, *entry.unreadable);
    }
  }
  return header;
}

/// The header of an open file; where its data starts goes to `data_start`.
Header read_header(const RegularFile& file, std::uint64_t& data_start, std::string_view path) {
  std::vector<std::byte> length(std::min<std::uint64_t>(kLengthBytes, file.bytes()));
  file.read_at(0, length);
  // A pointer's first eight bytes would be a length beyond all bounds.
  std::vector<std::byte> start(std::min<std::uint64_t>(64, file.bytes()));
  file.read_at(0, start);
  require_content(start, path);
  std::string text(header_length(length, file.bytes(), path), '\0');
  file.read_at(kLengthBytes, std::as_writable_bytes(std::span(text)));
  data_start = kLengthBytes + text.size();
  return parse_header(text, file.bytes() - data_start, path);
}

}  // namespace

ArrayFile parse_safetensors(std::span<const std::byte> file, std::string_view path) {
  const std::uint64_t header_bytes = header_length(file, file.size(), path);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, header_bytes);
  const std::span<const std::byte> data = file.subspan(kLengthBytes + header_bytes);
  Header header = parse_header(text, data.size(), path);
  for (const Entry& entry : header.entries) {  // copied only once everything is known to fit
    if (!entry.unreadable) {
      const auto part = data.subspan(entry.begin, entry.end - entry.begin);
      header.file.arrays.at(entry.name).bytes.assign(part.begin(), part.end());
    }
  }
  return std::move(header.file);
}

ArrayFile read_safetensors(const std::filesystem::path& file) {
  return parse_safetensors(read_bytes(file), file.string());
}

ArrayFile read_safetensors(const std::filesystem::path& file,
                           const std::function<bool(std::string_view name)>& wanted) {
  const RegularFile stream(file);
  std::uint64_t data_start = 0;
  Header header = read_header(stream, data_start, file.string());
  double need_bytes = 0;
  std::erase_if(header.entries, [&](const Entry& entry) {
    const bool take = wanted(entry.name);
    need_bytes += take ? static_cast<double>(entry.end - entry.begin) : 0;
    if (!take) {
      header.file.arrays.erase(entry.name);
      header.file.unreadable.erase(entry.name);
    }
    return !take;
  });
  require_host_memory(file.string(), need_bytes);
  for (const Entry& entry : header.entries) {
    if (!entry.unreadable) {
      std::vector<std::byte>& bytes = header.file.arrays.at(entry.name).bytes;
      bytes.resize(entry.end - entry.begin);
      stream.read_at(data_start + entry.begin, bytes);
    }
  }
  return std::move(header.file);
}

ArrayFile read_safetensors_header(const std::filesystem::path& file) {
  const RegularFile stream(file);
  std::uint64_t data_start = 0;
  return read_header(stream, data_start, file.string()).file;
}

}  // namespace moescope
