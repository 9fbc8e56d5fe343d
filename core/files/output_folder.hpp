#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace moescope {

/// A folder that results go to. What had to be made for it, folders above it included, is gone again with
/// this object when nothing was put there.
class OutputFolder {
 public:
  /// Makes the folder if it is not there. Throws FileError when that, or writing into it, is not possible.
  explicit OutputFolder(const std::filesystem::path& path);
  /// A new folder `name` below `parent`, or name-2, name-3, ... where others were first; never one that was
  /// there. Throws FileError.
  static OutputFolder numbered(const std::filesystem::path& parent, const std::string& name);
  const std::filesystem::path& path() const { return path_; }
  /// Throws FileError when the folder has one of `names`: it is somebody's data.
  void require_none_of(std::span<const std::string> names) const;

 private:
  /// From the outside in; an object of its own, so that a constructor that fails takes them away, too.
  struct Made {
    Made() = default;
    ~Made();
    Made(Made&& other) noexcept;
    Made(const Made&) = delete;
    Made& operator=(const Made&) = delete;
    Made& operator=(Made&&) = delete;
    std::vector<std::filesystem::path> folders;
  };
  bool make(const std::filesystem::path& path);

  std::filesystem::path path_;
  Made made_;
};

/// A folder of its own for files that nobody keeps, gone with everything in it at the end.
class ScratchFolder {
 public:
  /// In the system's folder for temporary files. Throws FileError that names TMPDIR.
  ScratchFolder();
  /// In `parent`, from where files can be moved into it in one step. Throws FileError.
  explicit ScratchFolder(const std::filesystem::path& parent);
  ~ScratchFolder();
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ScratchFolder(ScratchFolder&&) = delete;
  ScratchFolder& operator=(ScratchFolder&&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace moescope
