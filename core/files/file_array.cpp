#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"
#include "core/base/utf8.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"

namespace moescope {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian and are read by memcpy");

/// IEEE binary16 to binary32; exact.
float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fU;
  const std::uint32_t mantissa = half & 0x3ffU;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t wide_exponent = exponent == 0x1fU ? 0xffU : exponent + (127U - 15U);
  return std::bit_cast<float>(sign | (wide_exponent << 23) | (mantissa << 13));
}

template <class T>
T load(const std::byte* bytes, std::int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}

/// A FileArray is a public struct: never trust that its bytes match its shape.
void require_consistent(const FileArray& array, std::string_view path, std::string_view name) {
  const std::int64_t element_bytes = detail::file_dtype_bytes(array.dtype);
  const auto bytes = detail::checked_bytes(array.shape, element_bytes);
  if (element_bytes == 0 || !bytes || *bytes != static_cast<std::int64_t>(array.bytes.size())) {
    throw FileError(path, name,
                    fmt::format("{} bytes do not hold {} {}", array.bytes.size(),
                                detail::printable(array.dtype), detail::shape_text(array.shape)));
  }
}

/// One code point; what is none gives bytes that no UTF-8 has.
void append_utf8(std::uint32_t code, std::string& text) {
  const auto put = [&text](std::uint32_t byte) { text += static_cast<char>(byte); };
  const auto tail = [&](int shift) { put(0x80U | ((code >> shift) & 0x3fU)); };
  if (code < 0x80U) {
    put(code);
  } else if (code < 0x800U) {
    put(0xc0U | (code >> 6));
    tail(0);
  } else if (code < 0x10000U) {
    put(0xe0U | (code >> 12));
    tail(6);
    tail(0);
  } else if (code < 0x110000U) {
    put(0xf0U | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  } else {
    put(0xffU);
  }
}

/// Calls store(index, value as float) for each element.
template <class Store>
void convert_floats(const FileArray& array, std::string_view path, std::string_view name, Store store) {
  require_consistent(array, path, name);
  const std::byte* bytes = array.bytes.data();
  const std::int64_t count = array.size();
  const auto each = [&](auto read) {
    for (std::int64_t i = 0; i < count; ++i) {
      store(i, read(i));
    }
  };
  if (array.dtype == "f32") {
    each([&](std::int64_t i) { return load<float>(bytes, i); });
  } else if (array.dtype == "bf16") {
    each([&](std::int64_t i) { return to_float(Bf16{load<std::uint16_t>(bytes, i)}); });
  } else if (array.dtype == "f16") {
    each([&](std::int64_t i) { return half_to_float(load<std::uint16_t>(bytes, i)); });
  } else if (array.dtype == "f64") {
    each([&](std::int64_t i) { return static_cast<float>(load<double>(bytes, i)); });
  } else {
    throw FileError(path, name, fmt::format("dtype {}: must be f16, bf16, f32 or f64", array.dtype));
  }
}

}  // namespace

std::int64_t FileArray::size() const {
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    count *= extent;
  }
  return count;
}

HostTensor FileArray::to_tensor(Dtype storage, std::string_view path, std::string_view name) const {
  require_consistent(*this, path, name);
  const std::int64_t cols = shape.empty() ? 1 : shape.back();
  std::int64_t rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) {
    rows *= shape[i];
  }
  HostTensor tensor(storage, rows, cols);
  if (storage == Dtype::kF32) {
    float* out = tensor.f32().data;
    convert_floats(*this, path, name, [out](std::int64_t i, float value) { out[i] = value; });
  } else {
    Bf16* out = tensor.bf16().data;
    convert_floats(*this, path, name, [out](std::int64_t i, float value) { out[i] = to_bf16(value); });
  }
  return tensor;
}

std::vector<float> FileArray::to_floats(std::string_view path, std::string_view name) const {
  require_consistent(*this, path, name);
  std::vector<float> values(static_cast<std::size_t>(size()));
  convert_floats(*this, path, name,
                 [&values](std::int64_t i, float value) { values[static_cast<std::size_t>(i)] = value; });
  return values;
}

std::vector<std::int64_t> FileArray::to_integers(std::string_view path, std::string_view name) const {
  require_consistent(*this, path, name);
  std::vector<std::int64_t> values(static_cast<std::size_t>(size()));
  detail::copy_integers(*this, 0, values, path, name);
  return values;
}

std::string FileArray::to_text(std::string_view path, std::string_view name) const {
  require_consistent(*this, path, name);
  const bool is_text = detail::file_text_bytes(dtype) != 0;
  if (!is_text || size() != 1) {
    throw FileError(path, name, fmt::format("{} {}: must be one text", dtype, detail::shape_text(shape)));
  }
  std::string text;
  if (dtype.front() == 'S') {
    text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    text.erase(text.find_last_not_of('\0') + 1);
  } else {
    for (std::int64_t i = 0; i < std::ssize(bytes) / 4; ++i) {
      append_utf8(load<std::uint32_t>(bytes.data(), i), text);
    }
    text.erase(text.find_last_not_of('\0') + 1);
  }
  if (valid_utf8(text) != text) {
    throw FileError(path, name, "is not a valid text");
  }
  return text;
}

const FileArray& ArrayFile::get(std::string_view path, const std::string& name) const {
  if (const auto found = unreadable.find(name); found != unreadable.end()) {
    throw FileError(found->second);
  }
  const auto found = arrays.find(name);
  if (found == arrays.end()) {
    throw FileError(path, name, "missing");
  }
  return found->second;
}

ArrayFile read_array_file(const std::filesystem::path& file) {
  const std::string extension = file.extension().string();
  if (extension == ".safetensors") {
    return read_safetensors(file);
  }
  if (extension == ".npy" || extension == ".npz") {
    return read_npy_or_npz(file);
  }
  throw FileError(file.string(), "extension",
                  fmt::format("'{}': must be .npy, .npz or .safetensors", detail::printable(extension)));
}

namespace detail {

std::int64_t file_dtype_bytes(std::string_view dtype) {
  struct Entry {
    std::string_view name;
    std::int64_t bytes;
  };
  static constexpr std::array kEntries = {
      Entry{"bool", 1}, Entry{"u8", 1},  Entry{"i8", 1},  Entry{"i16", 2}, Entry{"u16", 2},
      Entry{"i32", 4},  Entry{"u32", 4}, Entry{"i64", 8}, Entry{"u64", 8}, Entry{"f16", 2},
      Entry{"bf16", 2}, Entry{"f32", 4}, Entry{"f64", 8}};
  const auto* found =
      std::find_if(kEntries.begin(), kEntries.end(), [&](const Entry& e) { return e.name == dtype; });
  return found == kEntries.end() ? file_text_bytes(dtype) : found->bytes;
}

std::int64_t file_text_bytes(std::string_view dtype) {
  constexpr std::int64_t kMostCharacters = 1 << 16;
  if (dtype.empty() || (dtype.front() != 'U' && dtype.front() != 'S')) {
    return 0;
  }
  const auto characters = parse_number<std::int64_t>(dtype.substr(1));
  if (!characters || *characters < 1 || *characters > kMostCharacters) {
    return 0;
  }
  return dtype.front() == 'U' ? 4 * *characters : *characters;
}

std::optional<std::int64_t> checked_bytes(std::span<const std::int64_t> shape, std::int64_t element_bytes) {
  std::int64_t product = element_bytes;
  bool empty = false;
  for (const std::int64_t extent : shape) {
    if (extent < 0) {
      return std::nullopt;
    }
    empty = empty || extent == 0;
    const std::int64_t factor = std::max<std::int64_t>(extent, 1);
    if (product > std::numeric_limits<std::int64_t>::max() / factor) {
      return std::nullopt;
    }
    product *= factor;
  }
  return empty ? 0 : product;
}

std::string printable(std::string_view text, std::size_t longest) {
  std::string result(text.substr(0, longest));
  for (char& c : result) {
    if (c < 0x20 || c > 0x7e) {
      c = '?';
    }
  }
  return text.size() > longest ? result + "..." : result;
}

std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (i == 8) {  // no array of ours has more dimensions; a lying header may have thousands
      text += fmt::format(", ... {} more", shape.size() - i);
      break;
    }
    text += fmt::format("{}{}", i == 0 ? "" : ", ", shape[i]);
  }
  return text + "]";
}

void copy_integers(const FileArray& array, std::int64_t first, std::span<std::int64_t> out,
                   std::string_view path, std::string_view name) {
  require_consistent(array, path, name);
  if (first < 0 || first + static_cast<std::int64_t>(out.size()) > array.size()) {
    throw InternalError("copy_integers past the end of an array");
  }
  const std::byte* bytes = array.bytes.data();
  const auto each = [&]<class T>(T) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const T value = load<T>(bytes, first + static_cast<std::int64_t>(i));
      if constexpr (std::is_same_v<T, std::uint64_t>) {
        if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
          throw FileError(path, name,
                          fmt::format("element {} = {}: does not fit int64",
                                      first + static_cast<std::int64_t>(i), value));
        }
      }
      out[i] = static_cast<std::int64_t>(+value);  // + widens characters to int first
    }
  };
  if (array.dtype == "i32") {
    each(std::int32_t{});
  } else if (array.dtype == "i64") {
    each(std::int64_t{});
  } else if (array.dtype == "u8" || array.dtype == "bool") {
    each(std::uint8_t{});
  } else if (array.dtype == "i8") {
    each(std::int8_t{});
  } else if (array.dtype == "i16") {
    each(std::int16_t{});
  } else if (array.dtype == "u16") {
    each(std::uint16_t{});
  } else if (array.dtype == "u32") {
    each(std::uint32_t{});
  } else if (array.dtype == "u64") {
    each(std::uint64_t{});
  } else {
    throw FileError(path, name, fmt::format("dtype {}: must be an integer type", array.dtype));
  }
}

}  // namespace detail
}  // namespace moescope
