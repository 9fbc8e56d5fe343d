#include "core/files/output_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <ranges>
#include <system_error>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

std::string text_of(int error) { return std::generic_category().message(error); }

[[noreturn]] void fail_folder(const fs::path& folder, int error) {
  throw FileError(folder.string(), "", fmt::format("cannot be created: {}", text_of(error)));
}

bool is_folder(const fs::path& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// 0 and the new folder's name in `path`, or why there is none.
int make_scratch(const fs::path& parent, fs::path& path) {
  std::string name = (parent / ".moescope-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) {
    return errno;
  }
  path = name;
  return 0;
}

}  // namespace

OutputFolder::OutputFolder(const fs::path& path) : path_(path) {
  fs::path folder;
  for (const fs::path& part : path) {
    folder /= part;
    if (!is_folder(folder) && !make(folder) && !is_folder(folder)) {
      fail_folder(path, ENOTDIR);
    }
  }
  if (::access(path.c_str(), W_OK | X_OK) != 0) {
    throw FileError(path.string(), "", fmt::format("cannot be written: {}", text_of(errno)));
  }
}

/// False when something is there already.
bool OutputFolder::make(const fs::path& path) {
  if (::mkdir(path.c_str(), 0777) == 0) {
    made_.folders.push_back(path);
    return true;
  }
  if (errno != EEXIST) {
    fail_folder(path_, errno);
  }
  return false;
}

OutputFolder OutputFolder::numbered(const fs::path& parent, const std::string& name) {
  OutputFolder folder(parent);
  folder.path_ = parent / name;
  for (int next = 2; !folder.make(folder.path_); ++next) {
    folder.path_ = parent / fmt::format("{}-{}", name, next);
  }
  return folder;
}

OutputFolder::Made::Made(Made&& other) noexcept : folders(std::exchange(other.folders, {})) {}

OutputFolder::Made::~Made() {
  for (auto it = folders.rbegin(); it != folders.rend(); ++it) {
    const fs::path& folder = *it;
    ::rmdir(folder.c_str());  // of what is not empty, refused
  }
}

void OutputFolder::require_none_of(std::span<const std::string> names) const {
  for (const std::string& name : names) {
    struct stat status {};
    if (::lstat((path_ / name).c_str(), &status) == 0) {
      throw FileError((path_ / name).string(), "", "exists already; name another output directory");
    }
  }
}

ScratchFolder::ScratchFolder() {
  std::error_code error;
  const fs::path parent = fs::temp_directory_path(error);
  const int code = error ? error.value() : make_scratch(parent, path_);
  if (code != 0) {
    constexpr std::size_t kShown = 200;
    const char* folder = std::getenv("TMPDIR");
    throw FileError(folder == nullptr ? parent.string() : std::string(folder).substr(0, kShown), "TMPDIR",
                    fmt::format("no folder for temporary files: {}", text_of(code)));
  }
}

ScratchFolder::ScratchFolder(const fs::path& parent) {
  if (const int code = make_scratch(parent, path_); code != 0) {
    fail_folder(parent, code);
  }
}

ScratchFolder::~ScratchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace moescope
