#include "core/files/safetensors_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"

namespace moescope {
namespace {

/// "BF16" of "bf16".
std::string format_name(const FileArray& array, const std::string& name) {
  const auto bytes = detail::checked_bytes(array.shape, detail::file_dtype_bytes(array.dtype));
  if (detail::file_text_bytes(array.dtype) != 0 || !bytes ||
      *bytes != static_cast<std::int64_t>(array.bytes.size())) {
    throw InternalError(fmt::format("{}: {} {} of {} bytes cannot be written as safetensors", name,
                                    array.dtype, detail::shape_text(array.shape), array.bytes.size()));
  }
  std::string spelled = array.dtype;
  std::ranges::transform(spelled, spelled.begin(),
                         [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return spelled;
}

}  // namespace

std::string safetensors_content(const std::map<std::string, FileArray>& arrays,
                                const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header;
  if (!metadata.empty()) {
    header["__metadata__"] = metadata;
  }
  std::uint64_t end = 0;
  for (const auto& [name, array] : arrays) {
    const std::uint64_t begin = end;
    end += array.bytes.size();
    header[name] = {
        {"dtype", format_name(array, name)}, {"shape", array.shape}, {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  text.append((8 - text.size() % 8) % 8, ' ');
  const std::uint64_t length = text.size();
  std::string content;
  content.reserve(sizeof(length) + text.size() + end);
  content.append(reinterpret_cast<const char*>(&length), sizeof(length));
  content += text;
  for (const auto& [name, array] : arrays) {
    content.append(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
  }
  return content;
}

}  // namespace moescope
