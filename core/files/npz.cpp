#include <fmt/format.h>
#include <minizip/unzip.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/npy.hpp"
#include "core/files/npy_header.hpp"

namespace moescope {
namespace {

/// Members of one file together, unpacked. Above the largest traces in use (a few GB), below what a machine
/// dies of.
constexpr std::uint64_t kMaxUnpackedBytes = std::uint64_t{8} << 30;
/// Deflate cannot pack tighter than 1032:1 (zlib's "Technical details"); a directory that says so lies.
constexpr std::uint64_t kMaxDeflateRatio = 1032;
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;
constexpr std::string_view kSuffix = ".npy";

/// Input of minizip's I/O callbacks. They are C: nothing here may throw.
struct MemoryStream {
  std::span<const std::byte> bytes;
  std::size_t at = 0;
  bool past_end = false;  ///< the last read came up short
};

voidpf open_stream(voidpf opaque, const void* /*name*/, int /*mode*/) { return opaque; }

uLong read_stream(voidpf /*opaque*/, voidpf stream, void* to, uLong size) {
  auto& memory = *static_cast<MemoryStream*>(stream);
  const std::size_t count = std::min<std::size_t>(size, memory.bytes.size() - memory.at);
  if (count > 0) {
    std::memcpy(to, memory.bytes.data() + memory.at, count);
  }
  memory.at += count;
  memory.past_end = count < size;
  return static_cast<uLong>(count);
}

uLong write_stream(voidpf /*opaque*/, voidpf /*stream*/, const void* /*from*/, uLong /*size*/) { return 0; }

ZPOS64_T tell_stream(voidpf /*opaque*/, voidpf stream) { return static_cast<MemoryStream*>(stream)->at; }

long seek_stream(voidpf /*opaque*/, voidpf stream, ZPOS64_T offset, int origin) {
  auto& memory = *static_cast<MemoryStream*>(stream);
  const std::size_t base = origin == ZLIB_FILEFUNC_SEEK_CUR   ? memory.at
                           : origin == ZLIB_FILEFUNC_SEEK_END ? memory.bytes.size()
                                                              : 0;
  if (offset > memory.bytes.size() - base) {  // minizip never seeks backwards by a relative offset
    return -1;
  }
  memory.at = base + offset;
  return 0;
}

int close_stream(voidpf /*opaque*/, voidpf /*stream*/) { return 0; }

/// Without this minizip takes the end of the file for zeros: its UNZ_EOF and UNZ_OK are both 0.
int error_stream(voidpf /*opaque*/, voidpf stream) {
  return static_cast<MemoryStream*>(stream)->past_end ? 1 : 0;
}

struct CloseArchive {
  void operator()(void* archive) const noexcept { unzClose(archive); }
};
using Archive = std::unique_ptr<void, CloseArchive>;

struct Member {
  std::string name;  ///< as in the directory
  unz64_file_pos position{};
  std::uint64_t packed_bytes = 0;
  std::uint64_t unpacked_bytes = 0;
  std::uint64_t flags = 0;
  std::uint64_t method = 0;  ///< of compression

  bool is_array() const { return name.ends_with(kSuffix); }
};

Member read_directory_entry(unzFile archive, std::string_view path) {
  unz_file_info64 info{};
  if (unzGetCurrentFileInfo64(archive, &info, nullptr, 0, nullptr, 0, nullptr, 0) != UNZ_OK) {
    throw FileError(path, "zip directory", "cannot be read");
  }
  Member member;
  member.name.resize(info.size_filename);
  unzGetCurrentFileInfo64(archive, &info, member.name.data(), info.size_filename, nullptr, 0, nullptr, 0);
  unzGetFilePos64(archive, &member.position);
  member.packed_bytes = info.compressed_size;
  member.unpacked_bytes = info.uncompressed_size;
  member.flags = info.flag;
  member.method = info.compression_method;
  if (info.uncompressed_size / kMaxDeflateRatio > info.compressed_size) {
    throw FileError(path, detail::printable(member.name),
                    fmt::format("{} bytes cannot have been packed into {}", info.uncompressed_size,
                                info.compressed_size));
  }
  return member;
}

/// All members, checked before the first byte is unpacked.
std::vector<Member> read_directory(unzFile archive, std::uint64_t file_bytes, std::string_view path) {
  std::vector<Member> members;
  unz_global_info64 global{};
  unzGetGlobalInfo64(archive, &global);
  if (global.number_entry == 0) {
    throw FileError(path, "zip directory", "holds no members");
  }
  std::uint64_t packed_bytes = 0;
  std::uint64_t unpacked_bytes = 0;
  int status = unzGoToFirstFile(archive);
  for (; status == UNZ_OK; status = unzGoToNextFile(archive)) {
    members.push_back(read_directory_entry(archive, path));
    if (members.back().packed_bytes > file_bytes - packed_bytes) {
      throw FileError(path, detail::printable(members.back().name),
                      fmt::format("{} packed bytes after {} before it do not lie in {} bytes: members "
                                  "overlap or run past the end",
                                  members.back().packed_bytes, packed_bytes, file_bytes));
    }
    packed_bytes += members.back().packed_bytes;
    const std::uint64_t bytes = members.back().unpacked_bytes;
    if (bytes > kMaxUnpackedBytes - unpacked_bytes) {
      throw FileError(path, detail::printable(members.back().name),
                      fmt::format("{} bytes after {} before it: more than the limit of {} unpacked bytes",
                                  bytes, unpacked_bytes, kMaxUnpackedBytes));
    }
    unpacked_bytes += bytes;
  }
  if (status != UNZ_END_OF_LIST_OF_FILE || members.size() != global.number_entry) {
    throw FileError(path, "zip directory",
                    fmt::format("{} of {} entries can be read", members.size(), global.number_entry));
  }
  return members;
}

/// Unpacks in chunks: memory grows with the data that is really there, not with what the directory claims.
std::vector<std::byte> unpack(unzFile archive, const Member& member, std::string_view path) {
  const std::string shown = detail::printable(member.name);
  if ((member.flags & 1U) != 0) {
    throw FileError(path, shown, "is encrypted");
  }
  if (member.method != 0 && member.method != Z_DEFLATED) {
    throw FileError(path, shown,
                    fmt::format("compression method {}: must be 0 (stored) or 8 (deflated)", member.method));
  }
  unz64_file_pos position = member.position;
  if (unzGoToFilePos64(archive, &position) != UNZ_OK || unzOpenCurrentFile(archive) != UNZ_OK) {
    throw FileError(path, shown, "local header is damaged or disagrees with the zip directory");
  }
  std::vector<std::byte> bytes;
  int count = 0;
  do {
    const std::size_t have = bytes.size();
    const std::size_t want =
        static_cast<std::size_t>(std::min<std::uint64_t>(member.unpacked_bytes - have, kChunkBytes));
    if (want == 0) {
      break;
    }
    if (have + want > bytes.capacity()) {
      bytes.reserve(
          static_cast<std::size_t>(std::min<std::uint64_t>(member.unpacked_bytes, 2 * (have + want))));
    }
    bytes.resize(have + want);
    count = unzReadCurrentFile(archive, bytes.data() + have, static_cast<unsigned>(want));
    bytes.resize(have + static_cast<std::size_t>(std::max(count, 0)));
  } while (count > 0);
  const int closed = unzCloseCurrentFile(archive);
  if (count < 0) {
    throw FileError(path, shown, fmt::format("compressed data is damaged after {} bytes", bytes.size()));
  }
  if (bytes.size() != member.unpacked_bytes) {
    throw FileError(
        path, shown,
        fmt::format("unpacks to {} bytes, the zip directory says {}", bytes.size(), member.unpacked_bytes));
  }
  if (closed != UNZ_OK) {
    throw FileError(path, shown,
                    closed == UNZ_CRCERROR ? "CRC does not match: the data is damaged" : "cannot be read");
  }
  return bytes;
}

}  // namespace

ArrayFile parse_npz(std::span<const std::byte> file, std::string_view path) {
  MemoryStream stream{file};
  zlib_filefunc64_def functions{open_stream, read_stream,  write_stream, tell_stream,
                                seek_stream, close_stream, error_stream, &stream};
  const Archive archive(unzOpen2_64("memory", &functions));
  if (!archive) {
    throw FileError(path, "zip directory", "not found: not a zip file, or truncated");
  }
  ArrayFile result;
  const std::vector<Member> members = read_directory(archive.get(), file.size(), path);
  for (const Member& member : members) {
    if (!member.is_array()) {
      continue;
    }
    const std::string name = member.name.substr(0, member.name.size() - kSuffix.size());
    const std::string shown = detail::printable(name);
    if (result.has(name)) {
      throw FileError(path, shown, "appears twice");
    }
    try {
      result.arrays.emplace(name, detail::take_npy(unpack(archive.get(), member, path), {path, shown}));
    } catch (const FileError& error) {
      result.unreadable.emplace(name, error);
    }
  }
  for (const Member& member : members) {
    if (!member.is_array() && !result.has(member.name)) {
      result.unreadable.emplace(member.name,
                                FileError(path, detail::printable(member.name), "is not an .npy member"));
    }
  }
  return result;
}

}  // namespace moescope
