#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace moescope {

/// Puts `content` in place of `file`: whole or, when that fails, not at all, what was there stays. A link is
/// replaced, not followed. Throws FileError.
void replace_file(const std::filesystem::path& file, std::string_view content);
/// The same for a file that must not be there yet; of two processes at once one makes it. Throws FileError.
void create_file(const std::filesystem::path& file, std::string_view content);

/// Throws InvalidArgument naming `field` when `file` is one of `others`, under whatever name (links of both
/// kinds, other ways to spell it); none of them need be there.
void require_other_file(std::string_view field, const std::filesystem::path& file,
                        std::span<const std::filesystem::path> others);

/// A file that somebody named for us to write. Made before the work starts, so that what cannot be written is
/// refused then, and what would be lost is not lost.
///
/// Links are followed. Devices and pipes (/dev/stdout, /dev/null, `>(gzip)`) are written as they are,
/// everything else is whole or not there; an older file is replaced.
class OutputFile {
 public:
  /// Changes nothing on disk. `field` is the option's name. `kept` are the files that the command reads or
  /// writes otherwise. Throws InvalidArgument when `file` is one of them, and FileError when it cannot be
  /// written: no folder, no permission, a folder itself.
  OutputFile(std::string_view field, std::filesystem::path file,
             std::span<const std::filesystem::path> kept = {});
  /// Throws FileError.
  void write(std::string_view content) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;  ///< as it was named
};

/// A file that grows line by line, by one process at a time: every line is there as a whole, or the disk was
/// full and what had fitted is taken back.
class LineFile {
 public:
  enum class Existing : std::uint8_t { kRefuse, kContinue };
  /// Makes the file, or opens it, and locks it. Throws FileError when it cannot be written, exists already or
  /// another process writes it.
  LineFile(std::filesystem::path file, Existing existing);
  ~LineFile();
  LineFile(const LineFile&) = delete;
  LineFile& operator=(const LineFile&) = delete;
  LineFile(LineFile&&) = delete;
  LineFile& operator=(LineFile&&) = delete;

  /// Whether it was not there before.
  bool is_new() const { return is_new_; }
  const std::filesystem::path& path() const { return path_; }
  /// `lines` and a line end, all of it or nothing. Throws FileError with the reason.
  void append(std::string lines);
  /// Cuts off what lies behind `bytes`. Throws FileError.
  void cut(std::uint64_t bytes);
  /// Returns when all lines are on disk, as far as the file system can say so.
  void sync() const;
  /// Takes a new file away again, if nobody has put another in its place.
  void remove();

 private:
  bool open(Existing existing);
  bool is_at_path() const;

  std::filesystem::path path_;
  int descriptor_ = -1;
  bool is_new_ = false;
  std::uint64_t size_ = 0;
};

}  // namespace moescope
