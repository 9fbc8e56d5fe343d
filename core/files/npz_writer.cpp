#include "core/files/npz_writer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zip.h>

#include <algorithm>
#include <array>
#include <memory>
#include <type_traits>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/files/file_bytes.hpp"

namespace moescope {
namespace {

/// NumPy's name of a dtype: "<f4" of "f32".
std::string descr_of(const std::string& dtype) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 12> kNames = {{{"bool", "|b1"},
                                                                                            {"u8", "|u1"},
                                                                                            {"i8", "|i1"},
                                                                                            {"u16", "<u2"},
                                                                                            {"i16", "<i2"},
                                                                                            {"u32", "<u4"},
                                                                                            {"i32", "<i4"},
                                                                                            {"u64", "<u8"},
                                                                                            {"i64", "<i8"},
                                                                                            {"f16", "<f2"},
                                                                                            {"f32", "<f4"},
                                                                                            {"f64", "<f8"}}};
  for (const auto& [name, descr] : kNames) {
    if (name == dtype) {
      return std::string(descr);
    }
  }
  if (detail::file_text_bytes(dtype) != 0) {
    return (dtype.front() == 'U' ? "<" : "|") + dtype;
  }
  throw InternalError(fmt::format("dtype {} has no NumPy name", dtype));
}

/// Version 1.0 with its data at a multiple of 64 bytes, as numpy.lib.format writes it.
std::string npy_header(const FileArray& array, const std::string& name) {
  const auto bytes = detail::checked_bytes(array.shape, detail::file_dtype_bytes(array.dtype));
  if (!bytes || *bytes != static_cast<std::int64_t>(array.bytes.size())) {
    throw InternalError(fmt::format("{}: {} bytes do not hold {} {}", name, array.bytes.size(), array.dtype,
                                    detail::shape_text(array.shape)));
  }
  std::string dict =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr_of(array.dtype),
                  fmt::join(array.shape, ", "), array.shape.size() == 1 ? "," : "");
  constexpr std::size_t kBefore = 10;  // magic, version, length
  dict.append(63 - (kBefore + dict.size()) % 64, ' ');
  dict += '\n';
  const auto length = static_cast<std::uint16_t>(dict.size());
  std::string header("\x93NUMPY\x01\x00", 8);
  header.append(reinterpret_cast<const char*>(&length), sizeof(length));
  return header + dict;
}

struct DiscardArchive {
  void operator()(zip_t* archive) const noexcept { zip_discard(archive); }
};

[[noreturn]] void fail(std::string_view what) { throw InternalError(fmt::format("libzip: {}", what)); }

/// A member of the archive that reads from `data`, which must outlive the archive.
void add_member(zip_t* archive, const std::string& name, const std::string& data) {
  zip_source_t* source = zip_source_buffer(archive, data.data(), data.size(), 0);
  const zip_int64_t index =
      source == nullptr ? -1 : zip_file_add(archive, name.c_str(), source, ZIP_FL_ENC_UTF_8);
  if (index < 0) {
    zip_source_free(source);
    fail(zip_strerror(archive));
  }
  constexpr zip_uint16_t kFirstOfJanuary1980 = 0x21;  // the earliest day that zip knows
  const auto member = static_cast<zip_uint64_t>(index);
  if (zip_set_file_compression(archive, member, ZIP_CM_DEFLATE, 0) != 0 ||
      zip_file_set_dostime(archive, member, 0, kFirstOfJanuary1980, 0) != 0) {
    fail(zip_strerror(archive));
  }
}

}  // namespace

template <class T>
FileArray file_array(std::span<const T> values, std::vector<std::int64_t> shape) {
  const char* dtype = std::is_same_v<T, float>           ? "f32"
                      : std::is_same_v<T, std::int64_t>  ? "i64"
                      : std::is_same_v<T, std::int32_t>  ? "i32"
                      : std::is_same_v<T, std::uint16_t> ? "u16"
                                                         : "u8";
  const auto bytes = std::as_bytes(values);
  return {dtype, std::move(shape), {bytes.begin(), bytes.end()}};
}

template FileArray file_array(std::span<const float>, std::vector<std::int64_t>);
template FileArray file_array(std::span<const std::int64_t>, std::vector<std::int64_t>);
template FileArray file_array(std::span<const std::int32_t>, std::vector<std::int64_t>);
template FileArray file_array(std::span<const std::uint16_t>, std::vector<std::int64_t>);
template FileArray file_array(std::span<const std::uint8_t>, std::vector<std::int64_t>);

FileArray text_array(std::string_view text) {
  const std::string clean = valid_utf8(text);
  std::vector<std::uint32_t> codes;
  for (std::string_view left = clean; !left.empty();) {
    const std::size_t length = utf8_length(left);
    const auto byte = [&](std::size_t i) {
      return static_cast<std::uint32_t>(static_cast<unsigned char>(left[i]));
    };
    std::uint32_t code = length == 1 ? byte(0) : byte(0) & (0x7fU >> length);
    for (std::size_t i = 1; i < length; ++i) {
      code = (code << 6) | (byte(i) & 0x3fU);
    }
    codes.push_back(code);
    left.remove_prefix(length);
  }
  codes.resize(std::max<std::size_t>(1, codes.size()));  // NumPy has no text of no length
  const auto bytes = std::as_bytes(std::span(codes));
  return {fmt::format("U{}", codes.size()), {}, {bytes.begin(), bytes.end()}};
}

std::string npz_content(const std::map<std::string, FileArray>& arrays) {
  std::map<std::string, std::string> members;
  for (const auto& [name, array] : arrays) {
    std::string& member = members[name + ".npy"];
    member = npy_header(array, name);
    member.append(reinterpret_cast<const char*>(array.bytes.data()), array.bytes.size());
  }
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* target = zip_source_buffer_create(nullptr, 0, 0, &error);
  zip_t* opened = target == nullptr ? nullptr : zip_open_from_source(target, ZIP_TRUNCATE, &error);
  if (opened == nullptr) {
    zip_source_free(target);
    fail("opens no archive in memory");
  }
  std::unique_ptr<zip_t, DiscardArchive> archive(opened);
  zip_source_keep(target);  // closing the archive gives up its own hold
  const std::unique_ptr<zip_source_t, decltype(&zip_source_free)> kept(target, &zip_source_free);
  for (const auto& [name, member] : members) {
    add_member(archive.get(), name, member);
  }
  if (zip_close(archive.get()) != 0) {
    fail(zip_strerror(archive.get()));
  }
  (void)archive.release();
  zip_stat_t state;
  if (zip_source_stat(target, &state) != 0 || (state.valid & ZIP_STAT_SIZE) == 0 ||
      zip_source_open(target) != 0) {
    fail("lost what it wrote");
  }
  std::string content(state.size, '\0');
  const zip_int64_t count = zip_source_read(target, content.data(), content.size());
  zip_source_close(target);
  if (count != static_cast<zip_int64_t>(content.size())) {
    fail("lost what it wrote");
  }
  return content;
}

}  // namespace moescope
