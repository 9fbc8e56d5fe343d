#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>

#include "core/base/error.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

constexpr int kGzipOnly = 15 + 16;  // zlib: the largest window, with a gzip header before the data

/// zlib's state with its end.
class Inflater {
 public:
  Inflater() {
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK) {
      throw InternalError("zlib cannot be started");
    }
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  Inflater(Inflater&&) = delete;
  Inflater& operator=(Inflater&&) = delete;
  z_stream& operator*() { return stream_; }

 private:
  z_stream stream_{};
};

/// One member from the start of `data` behind `text`; returns what follows it.
std::span<const std::byte> unpack_member(std::span<const std::byte> data, const std::string& path,
                                         std::uint64_t most_bytes, std::string& text) {
  Inflater inflater;
  z_stream& stream = *inflater;
  std::array<char, 1 << 16> chunk{};
  int status = Z_OK;
  while (status != Z_STREAM_END) {
    if (stream.avail_in == 0) {
      const std::size_t count = std::min<std::size_t>(data.size(), std::numeric_limits<uInt>::max());
      if (count == 0) {
        throw FileError(path, "", "cannot be unpacked: it ends before its data does");
      }
      // zlib's interface knows no const; it does not write here.
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(data.data()));  // NOLINT
      stream.avail_in = static_cast<uInt>(count);
      data = data.subspan(count);
    }
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    status = inflate(&stream, Z_NO_FLUSH);
    if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR) {
      throw FileError(
          path, "",
          fmt::format("cannot be unpacked: {}", stream.msg != nullptr ? stream.msg : "the data is damaged"));
    }
    const std::size_t count = chunk.size() - stream.avail_out;
    if (count > most_bytes - text.size()) {
      throw FileError(path, "", fmt::format("unpacks to more than {} bytes", most_bytes));
    }
    text.append(chunk.data(), count);
  }
  return {data.data() - stream.avail_in, data.size() + stream.avail_in};
}

}  // namespace

std::string unpack_gzip(std::span<const std::byte> data, const std::string& path, std::uint64_t most_bytes) {
  std::string text;
  do {
    data = unpack_member(data, path, most_bytes, text);
    // Tapes and some programs pad with zeros.
    data = data.subspan(static_cast<std::size_t>(
        std::ranges::find_if(data, [](std::byte byte) { return byte != std::byte{0}; }) - data.begin()));
  } while (!data.empty());
  return text;
}

}  // namespace moescope
