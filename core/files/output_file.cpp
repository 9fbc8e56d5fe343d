#include "core/files/output_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <optional>
#include <system_error>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& file, int error) {
  throw FileError(file.string(), "",
                  fmt::format("cannot be written: {}", std::generic_category().message(error)));
}

/// 0, or why not all of `content` could be written.
int write_all(int descriptor, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0 && errno != EINTR) {
      return errno;
    }
    content.remove_prefix(written < 0 ? 0 : static_cast<std::size_t>(written));
  }
  return 0;
}

/// 0, or why what was written may not be on disk. A file system that cannot tell (EINVAL) is no reason.
int sync_of(int descriptor) {
  return ::fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP || errno == EROFS ? 0 : errno;
}

/// A new empty file beside `file`, so that the step from one to the other cannot cross file systems; gone
/// again with this object.
class Partial {
 public:
  explicit Partial(const fs::path& file) {
    // A name of its own length: with something added, the longest names would be too long.
    for (int next = 0; descriptor_ < 0; ++next) {
      path_ = file.parent_path() / fmt::format(".moescope-{}-{}.partial", ::getpid(), next);
      descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor_ < 0 && errno != EEXIST) {
        fail(file, errno);
      }
    }
  }
  ~Partial() {
    ::close(descriptor_);
    if (!moved_) {
      ::unlink(path_.c_str());
    }
  }
  Partial(const Partial&) = delete;
  Partial& operator=(const Partial&) = delete;
  Partial(Partial&&) = delete;
  Partial& operator=(Partial&&) = delete;

  const fs::path& path() const { return path_; }
  /// 0, or why not.
  int fill(std::string_view content) const {
    const int error = write_all(descriptor_, content);
    return error != 0 ? error : sync_of(descriptor_);
  }
  /// 0, or why it cannot take the place of `file`.
  int move_to(const fs::path& file) {
    moved_ = ::rename(path_.c_str(), file.c_str()) == 0;
    return moved_ ? 0 : errno;
  }
  void set_mode(mode_t mode) const { (void)::fchmod(descriptor_, mode); }

 private:
  fs::path path_;
  int descriptor_ = -1;
  bool moved_ = false;  ///< by then the name may be another's
};

/// What a path names, links followed; none when there is nothing.
std::optional<struct stat> status_of(const fs::path& file) {
  struct stat status {};
  return ::stat(file.c_str(), &status) == 0 ? std::optional(status) : std::nullopt;
}

bool is_pipe_or_device(const struct stat& status) {
  return S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode) || S_ISSOCK(status.st_mode);
}

/// The file behind a chain of links; it need not be there.
fs::path followed(const fs::path& file) {
  constexpr int kMostLinks = 40;  // of the kernel, too
  fs::path path = file;
  for (int links = 0; links < kMostLinks; ++links) {
    std::error_code error;
    const fs::path target = fs::read_symlink(path, error);
    if (error) {
      return path;
    }
    path = target.is_absolute() ? target : path.parent_path() / target;
  }
  fail(file, ELOOP);
}

bool is_same(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/// Whether two paths name one file, or would if it were there.
bool is_same_file(const fs::path& a, const fs::path& b) {
  const auto status_a = status_of(a);
  const auto status_b = status_of(b);
  if (status_a || status_b) {
    // One terminal may be read and written.
    return status_a && status_b && S_ISREG(status_a->st_mode) && is_same(*status_a, *status_b);
  }
  const auto folder = [](const fs::path& file) {
    return status_of(file.has_parent_path() ? file.parent_path() : fs::path("."));
  };
  const auto folder_a = folder(a);
  const auto folder_b = folder(b);
  return a.filename() == b.filename() && folder_a && folder_b && is_same(*folder_a, *folder_b);
}

/// Throws FileError when nothing can be written to `file`, which is no link.
void require_writable(const fs::path& file) {
  struct stat status {};
  const bool exists = ::stat(file.c_str(), &status) == 0;
  if (!exists && errno != ENOENT) {
    fail(file, errno);
  }
  if ((exists && S_ISDIR(status.st_mode)) || !file.has_filename()) {
    fail(file, EISDIR);
  }
  if (exists && S_ISBLK(status.st_mode)) {
    throw FileError(file.string(), "", "cannot be written: is a disk");
  }
  if (exists && ::access(file.c_str(), W_OK) != 0) {
    fail(file, errno);
  }
  if (!exists || !is_pipe_or_device(status)) {
    const Partial probe(file);
  }
}

void write_pipe_or_device(const fs::path& file, std::string_view content) {
  // A pipe that nobody reads would hold us here for ever.
  const int descriptor = ::open(file.c_str(), O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (descriptor < 0) {
    fail(file, errno);
  }
  (void)::fcntl(descriptor, F_SETFL, ::fcntl(descriptor, F_GETFL) & ~O_NONBLOCK);
  const int error = write_all(descriptor, content);
  ::close(descriptor);
  if (error != 0) {
    fail(file, error);
  }
}

}  // namespace

void replace_file(const fs::path& file, std::string_view content) {
  Partial partial(file);
  if (const auto status = status_of(file); status && S_ISREG(status->st_mode)) {
    partial.set_mode(status->st_mode & 07777);
  }
  if (const int error = partial.fill(content); error != 0) {
    fail(file, error);
  }
  if (const int error = partial.move_to(file); error != 0) {
    fail(file, error);
  }
}

void create_file(const fs::path& file, std::string_view content) {
  const Partial partial(file);
  if (const int error = partial.fill(content); error != 0) {
    fail(file, error);
  }
  // Unlike rename, it never takes the place of something; file systems without hard links have this instead.
  if (::link(partial.path().c_str(), file.c_str()) != 0 &&
      (errno == EEXIST ||
       ::renameat2(AT_FDCWD, partial.path().c_str(), AT_FDCWD, file.c_str(), RENAME_NOREPLACE) != 0)) {
    if (errno == EEXIST) {
      throw FileError(file.string(), "", "exists already; name another output directory");
    }
    fail(file, errno);
  }
}

void require_other_file(std::string_view field, const fs::path& file, std::span<const fs::path> others) {
  const fs::path target = followed(file);
  for (const fs::path& other : others) {
    if (is_same_file(target, followed(other))) {
      throw InvalidArgument(field, file.string(),
                            "this command reads or writes it as another file, too; one would be lost");
    }
  }
}

OutputFile::OutputFile(std::string_view field, fs::path file, std::span<const fs::path> kept)
    : path_(std::move(file)) {
  require_other_file(field, path_, kept);
  // Not the target of /dev/stdout, which has no path.
  const auto status = status_of(path_);
  require_writable(status && is_pipe_or_device(*status) ? path_ : followed(path_));
}

void OutputFile::write(std::string_view content) const {
  const auto status = status_of(path_);
  if (status && is_pipe_or_device(*status)) {
    write_pipe_or_device(path_, content);
  } else {
    replace_file(followed(path_), content);
  }
}

LineFile::LineFile(fs::path file, Existing existing) : path_(std::move(file)) {
  try {
    while (!open(existing)) {
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

/// False when somebody took the file away meanwhile.
bool LineFile::open(Existing existing) {
  constexpr int kFlags = O_RDWR | O_APPEND | O_CLOEXEC | O_NOCTTY;
  descriptor_ = ::open(path_.c_str(), kFlags | O_CREAT | O_EXCL, 0666);
  is_new_ = descriptor_ >= 0;
  if (!is_new_ && errno == EEXIST) {
    if (existing == Existing::kRefuse) {
      throw FileError(path_.string(), "", "exists already; name another output directory");
    }
    // Read and write, which does not wait for the other end of a pipe.
    descriptor_ = ::open(path_.c_str(), kFlags);
    struct stat link {};
    if (descriptor_ < 0 && errno == ENOENT && ::lstat(path_.c_str(), &link) != 0) {
      return false;
    }
  }
  struct stat status {};
  if (descriptor_ < 0 || ::fstat(descriptor_, &status) != 0) {
    fail(path_, errno);
  }
  if (!S_ISREG(status.st_mode)) {
    throw FileError(path_.string(), "", "cannot be written: is not a regular file");
  }
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    throw FileError(path_.string(), "", "another process is writing it");
  }
  if (!is_at_path()) {
    ::close(std::exchange(descriptor_, -1));
    return false;
  }
  // After the lock: until then another process may have added to it.
  if (::fstat(descriptor_, &status) != 0) {
    fail(path_, errno);
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  return true;
}

LineFile::~LineFile() { ::close(descriptor_); }

bool LineFile::is_at_path() const {
  struct stat opened {};
  const auto there = status_of(path_);
  return there && ::fstat(descriptor_, &opened) == 0 && is_same(*there, opened);
}

void LineFile::append(std::string lines) {
  lines += '\n';
  if (const int error = write_all(descriptor_, lines); error != 0) {
    (void)::ftruncate(descriptor_, static_cast<off_t>(size_));
    fail(path_, error);
  }
  size_ += lines.size();
}

void LineFile::cut(std::uint64_t bytes) {
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes)) != 0) {
    fail(path_, errno);
  }
  size_ = bytes;
}

void LineFile::sync() const { (void)::fsync(descriptor_); }

void LineFile::remove() {
  if (is_new_ && is_at_path()) {
    ::unlink(path_.c_str());
  }
}

}  // namespace moescope
