#include "core/files/npy.hpp"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <limits>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy_header.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

/// Parser of the header, a Python dict literal: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
/// Only what numpy writes is accepted; nothing is evaluated.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const detail::NpyPlace& place) : text_(text), place_(place) {}

  detail::NpyHeader parse() {
    detail::NpyHeader header;
    bool has_descr = false;
    bool has_order = false;
    bool has_shape = false;
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr" && !std::exchange(has_descr, true)) {
        header.dtype = descr();
      } else if (key == "fortran_order" && !std::exchange(has_order, true)) {
        header.fortran_order = boolean();
      } else if (key == "shape" && !std::exchange(has_shape, true)) {
        header.shape = shape();
      } else {
        place_.fail("header", fmt::format("key '{}': must be descr, fortran_order and shape, once each",
                                          detail::printable(key)));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (at_ != text_.size()) {
      unexpected("nothing after '}'");
    }
    if (!has_descr || !has_order || !has_shape) {
      place_.fail("header", "descr, fortran_order or shape is missing");
    }
    return header;
  }

 private:
  void skip_space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r')) {
      ++at_;
    }
  }

  bool accept(char c) {
    skip_space();
    if (at_ < text_.size() && text_[at_] == c) {
      ++at_;
      return true;
    }
    return false;
  }

  void expect(char c) {
    if (!accept(c)) {
      unexpected(fmt::format("'{}'", c));
    }
  }

  [[noreturn]] void unexpected(std::string_view wanted) const {
    place_.fail("header", fmt::format("'{}' at byte {}: expected {}",
                                      detail::printable(text_.substr(at_, 16)), at_, wanted));
  }

  std::string string() {
    skip_space();
    if (at_ >= text_.size() || (text_[at_] != '\'' && text_[at_] != '"')) {
      unexpected("a quoted string");
    }
    const std::size_t close = text_.find(text_[at_], at_ + 1);
    if (close == std::string_view::npos) {
      unexpected("a closing quote");
    }
    const std::string_view inside = text_.substr(at_ + 1, close - at_ - 1);
    at_ = close + 1;
    return std::string(inside);
  }

  bool boolean() {
    skip_space();
    const bool value = text_.substr(at_).starts_with("True");
    if (!value && !text_.substr(at_).starts_with("False")) {
      unexpected("True or False");
    }
    at_ += value ? 4 : 5;
    return value;
  }

  /// numpy's descr, e.g. "<f4", to our dtype name.
  std::string descr() {
    skip_space();
    if (at_ < text_.size() && text_[at_] == '[') {
      place_.fail("descr", "structured dtypes are not supported");
    }
    const std::string spelled = string();
    if (spelled.starts_with('>')) {
      place_.fail("descr", fmt::format("'{}': big-endian data is not supported", detail::printable(spelled)));
    }
    const std::size_t start = spelled.find_first_of("<|=") == 0 ? 1 : 0;
    const std::string kind = spelled.substr(start);
    if (kind.starts_with('O')) {
      place_.fail("descr", fmt::format("'{}': Python objects are not supported", detail::printable(spelled)));
    }
    if (kind == "V2") {
      place_.fail(
          "descr",
          fmt::format("'{}': numpy writes bfloat16 so, without its name; save it as float32 (it holds "
                      "every bfloat16), or in safetensors",
                      detail::printable(spelled)));
    }
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kNames = {{{"b1", "bool"},
                                                                                              {"i1", "i8"},
                                                                                              {"i2", "i16"},
                                                                                              {"i4", "i32"},
                                                                                              {"i8", "i64"},
                                                                                              {"u1", "u8"},
                                                                                              {"u2", "u16"},
                                                                                              {"u4", "u32"},
                                                                                              {"u8", "u64"},
                                                                                              {"f2", "f16"},
                                                                                              {"f4", "f32"},
                                                                                              {"f8", "f64"}}};
    for (const auto& [numpy_name, name] : kNames) {
      if (kind == numpy_name) {
        return std::string(name);
      }
    }
    if (detail::file_text_bytes(kind) != 0) {
      return kind;
    }
    place_.fail("descr",
                fmt::format("'{}': must be one of b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 U S, little-endian",
                            detail::printable(spelled)));
  }

  std::int64_t extent() {
    skip_space();
    const std::size_t first = at_;
    std::int64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      const std::int64_t digit = text_[at_] - '0';
      if (value > (std::numeric_limits<std::int64_t>::max() - digit) / 10) {
        place_.fail("shape",
                    fmt::format("extent {}: does not fit int64", detail::printable(text_.substr(first, 24))));
      }
      value = value * 10 + digit;
      ++at_;
    }
    if (at_ == first) {
      if (text_.substr(at_).starts_with('-')) {
        place_.fail("shape",
                    fmt::format("extent {}: must not be negative", detail::printable(text_.substr(at_, 24))));
      }
      unexpected("an extent");
    }
    if (at_ < text_.size() && text_[at_] == 'L') {  // as Python 2 writes its long integers
      ++at_;
    }
    return value;
  }

  std::vector<std::int64_t> shape() {
    std::vector<std::int64_t> extents;
    expect('(');
    while (!accept(')')) {
      extents.push_back(extent());
      if (!accept(',')) {
        if (extents.size() == 1) {
          unexpected("',' (a tuple of one has a comma)");
        }
        expect(')');
        break;
      }
    }
    return extents;
  }

  std::string_view text_;
  const detail::NpyPlace& place_;
  std::size_t at_ = 0;
};

/// Column-major to row-major: walks the row-major order and keeps the column-major index in step.
std::vector<std::byte> to_row_major(std::span<const std::byte> data, const std::vector<std::int64_t>& shape,
                                    std::int64_t element_bytes) {
  std::vector<std::byte> result(data.size());
  std::vector<std::int64_t> stride(shape.size(), element_bytes);
  for (std::size_t axis = 1; axis < shape.size(); ++axis) {
    stride[axis] = stride[axis - 1] * shape[axis - 1];
  }
  std::vector<std::int64_t> index(shape.size(), 0);
  std::int64_t from = 0;
  for (std::size_t to = 0; to < result.size(); to += static_cast<std::size_t>(element_bytes)) {
    std::memcpy(result.data() + to, data.data() + from, static_cast<std::size_t>(element_bytes));
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      from += stride[axis];
      if (++index[axis] < shape[axis]) {
        break;
      }
      from -= stride[axis] * shape[axis];
      index[axis] = 0;
    }
  }
  return result;
}

}  // namespace

namespace detail {

void NpyPlace::fail(std::string_view field, std::string_view what) const {
  throw FileError(path, member.empty() ? std::string(field) : fmt::format("{}.{}", member, field), what);
}

NpyHeader parse_npy_header(std::span<const std::byte> file, const NpyPlace& place) {
  static constexpr std::string_view kMagic = "\x93NUMPY";
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  constexpr std::size_t kVersionEnd = 8;  // magic, then major and minor version
  if (text.size() < kVersionEnd || !text.starts_with(kMagic)) {
    place.fail("magic", "not an .npy array (no \\x93NUMPY at its start)");
  }
  const auto major = std::to_integer<unsigned>(file[6]);
  const auto minor = std::to_integer<unsigned>(file[7]);
  if (major < 1 || major > 3 || minor != 0) {
    place.fail("version", fmt::format("{}.{}: must be 1.0, 2.0 or 3.0", major, minor));
  }
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  if (text.size() < kVersionEnd + length_bytes) {
    place.fail("header length", fmt::format("file has {} bytes and ends before it", text.size()));
  }
  std::uint32_t header_bytes = 0;  // little-endian, as this machine (asserted in file_array.cpp)
  std::memcpy(&header_bytes, file.data() + kVersionEnd, length_bytes);
  const std::size_t header_start = kVersionEnd + length_bytes;
  if (header_bytes > text.size() - header_start) {
    place.fail("header length",
               fmt::format("{}: runs past the end of the file ({} bytes)", header_bytes, text.size()));
  }
  NpyHeader header = HeaderParser(text.substr(header_start, header_bytes), place).parse();
  header.data_offset = header_start + header_bytes;

  const auto need = checked_bytes(header.shape, file_dtype_bytes(header.dtype));
  if (!need) {
    place.fail("shape", fmt::format("{} {} overflows int64", header.dtype, shape_text(header.shape)));
  }
  const std::size_t have = text.size() - header.data_offset;
  if (static_cast<std::uint64_t>(*need) != have) {
    place.fail("data",
               fmt::format("{} bytes, {} {} needs {}", have, header.dtype, shape_text(header.shape), *need));
  }
  return header;
}

FileArray take_npy(std::vector<std::byte> file, const NpyPlace& place) {
  NpyHeader header = parse_npy_header(file, place);
  FileArray array{std::move(header.dtype), std::move(header.shape), {}};
  if (header.fortran_order && array.shape.size() > 1) {
    array.bytes =
        to_row_major(std::span(file).subspan(header.data_offset), array.shape, file_dtype_bytes(array.dtype));
  } else {
    file.erase(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(header.data_offset));
    array.bytes = std::move(file);
  }
  return array;
}

}  // namespace detail

FileArray parse_npy(std::span<const std::byte> file, std::string_view path) {
  return detail::take_npy({file.begin(), file.end()}, {path, ""});
}

ArrayFile read_npy_or_npz(const std::filesystem::path& file) {
  std::vector<std::byte> bytes = read_bytes(file);
  if (file.extension() == ".npz") {
    return parse_npz(bytes, file.string());
  }
  ArrayFile result;
  result.arrays.emplace("", detail::take_npy(std::move(bytes), {file.string(), ""}));
  return result;
}

}  // namespace moescope
