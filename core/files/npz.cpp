#include <fmt/format.h>
#include <zip.h>

#include <algorithm>
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

struct CloseArchive {
  void operator()(zip_t* archive) const noexcept { zip_discard(archive); }
};
using Archive = std::unique_ptr<zip_t, CloseArchive>;

struct CloseMember {
  void operator()(zip_file_t* member) const noexcept { zip_fclose(member); }
};

/// The archive in `file`, which is not copied.
Archive open_archive(std::span<const std::byte> file, std::string_view path) {
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* source = zip_source_buffer_create(file.data(), file.size(), 0, &error);
  zip_t* archive =
      source == nullptr || file.empty() ? nullptr : zip_open_from_source(source, ZIP_RDONLY, &error);
  if (archive == nullptr) {
    zip_source_free(source);
    const bool damaged = zip_error_code_zip(&error) == ZIP_ER_INCONS;
    zip_error_fini(&error);
    throw FileError(path, "zip directory",
                    damaged ? "contradicts itself" : "not found: not a zip file, or truncated");
  }
  zip_error_fini(&error);
  return Archive(archive);
}

struct Member {
  std::string name;  ///< as in the directory
  zip_uint64_t index = 0;
  std::uint64_t packed_bytes = 0;
  std::uint64_t unpacked_bytes = 0;
  bool encrypted = false;
  std::uint64_t method = 0;  ///< of compression

  bool is_array() const { return name.ends_with(kSuffix); }
};

Member read_directory_entry(zip_t* archive, zip_uint64_t index, std::string_view path) {
  constexpr zip_uint64_t kNeeded =
      ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD;
  zip_stat_t entry;
  zip_stat_init(&entry);
  const char* name = zip_get_name(archive, index, ZIP_FL_ENC_RAW);
  if (name == nullptr || zip_stat_index(archive, index, 0, &entry) != 0 ||
      (entry.valid & kNeeded) != kNeeded) {
    throw FileError(path, "zip directory", fmt::format("entry {} cannot be read", index));
  }
  const Member member{.name = name,
                      .index = index,
                      .packed_bytes = entry.comp_size,
                      .unpacked_bytes = entry.size,
                      .encrypted = entry.encryption_method != ZIP_EM_NONE,
                      .method = entry.comp_method};
  if (member.unpacked_bytes / kMaxDeflateRatio > member.packed_bytes) {
    throw FileError(
        path, detail::printable(member.name),
        fmt::format("{} bytes cannot have been packed into {}", member.unpacked_bytes, member.packed_bytes));
  }
  return member;
}

/// All members, checked before the first byte is unpacked.
std::vector<Member> read_directory(zip_t* archive, std::uint64_t file_bytes, std::string_view path) {
  std::vector<Member> members;
  const auto entries = static_cast<zip_uint64_t>(zip_get_num_entries(archive, 0));
  if (entries == 0) {
    throw FileError(path, "zip directory", "holds no members");
  }
  std::uint64_t packed_bytes = 0;
  std::uint64_t unpacked_bytes = 0;
  for (zip_uint64_t index = 0; index < entries; ++index) {
    members.push_back(read_directory_entry(archive, index, path));
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
  return members;
}

[[noreturn]] void refuse_data(zip_file_t* member, const Member& entry, std::uint64_t unpacked,
                              std::string_view path) {
  const std::string shown = detail::printable(entry.name);
  const int error = zip_error_code_zip(zip_file_get_error(member));
  if (error == ZIP_ER_CRC) {
    throw FileError(path, shown, "CRC does not match: the data is damaged");
  }
  if (error == ZIP_ER_INCONS || error == ZIP_ER_EOF) {
    throw FileError(path, shown,
                    fmt::format("does not unpack to the {} bytes that the zip directory says, but to {}",
                                entry.unpacked_bytes, unpacked));
  }
  throw FileError(path, shown, fmt::format("compressed data is damaged after {} bytes", unpacked));
}

/// Unpacks in chunks: memory grows with the data that is really there, not with what the directory claims.
std::vector<std::byte> unpack(zip_t* archive, const Member& entry, std::string_view path) {
  const std::string shown = detail::printable(entry.name);
  if (entry.encrypted) {
    throw FileError(path, shown, "is encrypted");
  }
  if (entry.method != ZIP_CM_STORE && entry.method != ZIP_CM_DEFLATE) {
    throw FileError(path, shown,
                    fmt::format("compression method {}: must be 0 (stored) or 8 (deflated)", entry.method));
  }
  const std::unique_ptr<zip_file_t, CloseMember> member(zip_fopen_index(archive, entry.index, 0));
  if (!member) {
    throw FileError(path, shown, "local header is damaged or disagrees with the zip directory");
  }
  std::vector<std::byte> bytes;
  zip_int64_t count = 0;
  do {
    const std::size_t have = bytes.size();
    // One byte past the end as well: only there the library compares size and CRC.
    const auto want =
        static_cast<std::size_t>(std::min<std::uint64_t>(entry.unpacked_bytes - have + 1, kChunkBytes));
    if (have + want > bytes.capacity()) {
      bytes.reserve(
          static_cast<std::size_t>(std::min<std::uint64_t>(entry.unpacked_bytes + 1, 2 * (have + want))));
    }
    bytes.resize(have + want);
    count = zip_fread(member.get(), bytes.data() + have, want);
    bytes.resize(have + static_cast<std::size_t>(std::max<zip_int64_t>(count, 0)));
  } while (count > 0 && bytes.size() <= entry.unpacked_bytes);
  if (count < 0) {
    refuse_data(member.get(), entry, bytes.size(), path);
  }
  if (bytes.size() != entry.unpacked_bytes) {
    throw FileError(path, shown,
                    fmt::format("does not unpack to the {} bytes that the zip directory says, but to {}{}",
                                entry.unpacked_bytes, bytes.size() > entry.unpacked_bytes ? "more than " : "",
                                std::min<std::uint64_t>(bytes.size(), entry.unpacked_bytes)));
  }
  return bytes;
}

}  // namespace

ArrayFile parse_npz(std::span<const std::byte> file, std::string_view path) {
  const Archive archive = open_archive(file, path);
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
