#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace moescope {

/// A regular file, open for reading: the one way in for every file that moescope reads but did not just
/// write. Opening never waits and reading ends: what is no regular file (a folder, a FIFO, a device) is
/// refused.
class RegularFile {
 public:
  /// Throws FileError with the system's reason, or that `file` is not a regular one.
  explicit RegularFile(const std::filesystem::path& file);
  ~RegularFile();
  RegularFile(const RegularFile&) = delete;
  RegularFile& operator=(const RegularFile&) = delete;
  RegularFile(RegularFile&&) = delete;
  RegularFile& operator=(RegularFile&&) = delete;

  std::uint64_t bytes() const { return bytes_; }
  /// The next bytes of the file, all of `out`. Throws FileError when they cannot be read or there are fewer.
  void read(std::span<std::byte> out);
  /// Likewise from `offset` on; the next read() is not moved by it.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
  std::uint64_t bytes_ = 0;
};

/// Most bytes of a text that people write or a program writes for them: devices, experiments, calibrations.
inline constexpr std::uint64_t kMostTextBytes = std::uint64_t{16} << 20;
/// The same for recorded rows, unpacked.
inline constexpr std::uint64_t kMostRowsBytes = std::uint64_t{2} << 30;

/// Whether something stands there. Never throws: where the system does not say, opening it will.
bool file_exists(const std::filesystem::path& file);

/// Throws FileError when the content is a Git LFS pointer: what a checkout without the data holds.
void require_content(std::span<const std::byte> content, const std::filesystem::path& file);

/// The whole of a regular file. Throws FileError, and OutOfMemory before anything is read.
std::vector<std::byte> read_bytes(const std::filesystem::path& file);
/// The same as text. Throws FileError also for more than `most_bytes`.
std::string read_text(const std::filesystem::path& file, std::uint64_t most_bytes = kMostTextBytes);

/// Text of gzip data, of one member or several. Throws FileError naming `path` for other data, damaged data
/// and more than `most_bytes` of text.
std::string unpack_gzip(std::span<const std::byte> data, const std::string& path,
                        std::uint64_t most_bytes = kMostRowsBytes);

}  // namespace moescope
