#include "core/files/regular_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"

namespace moescope {
namespace {

std::string_view kind_of(mode_t mode) {
  return S_ISDIR(mode) ? "a folder" : S_ISFIFO(mode) ? "a FIFO" : S_ISSOCK(mode) ? "a socket" : "a device";
}

[[noreturn]] void fail(const std::filesystem::path& file, std::string_view what) {
  throw FileError(file.string(), "", what);
}

[[noreturn]] void fail_by_errno(const std::filesystem::path& file, std::string_view what) {
  const std::error_code error(errno, std::generic_category());
  fail(file, fmt::format("{}: {}", what, error.message()));
}

/// Reads until `out` is full; `read_some` reads into what is left behind the bytes that are there, as read(2)
/// does.
template <class ReadSome>
void fill(std::span<std::byte> out, const std::filesystem::path& file, ReadSome read_some) {
  std::size_t have = 0;
  while (have < out.size()) {
    const ::ssize_t count = read_some(out.subspan(have), have);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      fail_by_errno(file, "cannot be read");
    }
    if (count == 0) {
      fail(file, fmt::format("read {} of {} bytes", have, out.size()));
    }
    have += static_cast<std::size_t>(count);
  }
}

}  // namespace

RegularFile::RegularFile(const std::filesystem::path& file) : file_(file) {
  // O_NONBLOCK: a FIFO that nobody writes would wait here for ever. It changes nothing for regular files.
  descriptor_ = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor_ < 0) {
    if (errno == ENOENT) {
      fail(file, "no such file");
    }
    fail_by_errno(file, "cannot be opened");
  }
  struct stat status {};
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (known && S_ISREG(status.st_mode)) {
    bytes_ = static_cast<std::uint64_t>(status.st_size);
    return;
  }
  ::close(descriptor_);
  fail(file,
       known ? fmt::format("not a regular file but {}", kind_of(status.st_mode)) : "cannot be examined");
}

RegularFile::~RegularFile() { ::close(descriptor_); }

void RegularFile::read(std::span<std::byte> out) {
  fill(out, file_, [this](std::span<std::byte> rest, std::size_t /*have*/) {
    return ::read(descriptor_, rest.data(), rest.size());
  });
}

void RegularFile::read_at(std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > bytes_ || out.size() > bytes_ - offset) {
    fail(file_, fmt::format("{} bytes at {} run past its end at {}", out.size(), offset, bytes_));
  }
  fill(out, file_, [&](std::span<std::byte> rest, std::size_t have) {
    return ::pread(descriptor_, rest.data(), rest.size(), static_cast<::off_t>(offset + have));
  });
}

bool file_exists(const std::filesystem::path& file) {
  std::error_code error;
  return std::filesystem::exists(file, error);
}

void require_content(std::span<const std::byte> content, const std::filesystem::path& file) {
  const std::string_view text(reinterpret_cast<const char*>(content.data()), content.size());
  if (text.starts_with("version https://git-lfs.github.com/spec/")) {
    fail(file, "is a Git LFS pointer, not the data (git lfs pull fetches it)");
  }
}

std::vector<std::byte> read_bytes(const std::filesystem::path& file) {
  RegularFile stream(file);
  require_host_memory(file.string(), stream.bytes());
  std::vector<std::byte> bytes(stream.bytes());
  stream.read(bytes);
  require_content(bytes, file);
  return bytes;
}

std::string read_text(const std::filesystem::path& file, std::uint64_t most_bytes) {
  RegularFile stream(file);
  if (stream.bytes() > most_bytes) {
    fail(file, fmt::format("has {} bytes: must be at most {}", stream.bytes(), most_bytes));
  }
  std::string text(stream.bytes(), '\0');
  const auto bytes = std::as_writable_bytes(std::span(text));
  stream.read(bytes);
  require_content(bytes, file);
  return text;
}

}  // namespace moescope
