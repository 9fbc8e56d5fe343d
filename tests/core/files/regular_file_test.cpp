// The one way in for files: what is no regular file is refused at once, and the message says what it is.
#include "core/files/regular_file.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <chrono>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "core/results/experiment.hpp"
#include "core/results/result.hpp"
#include "tests/support/file_builders.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::contains;

std::string text_error(const fs::path& file) {
  return test::message_of<FileError>([&] { read_text(file, 1000); });
}

/// Calls check(name, read) for every reader of this wing.
template <class Check>
void for_each_reader(const Check& check) {
  check("text.json", [](const fs::path& file) { read_text(file); });
  check("a.safetensors", [](const fs::path& file) { read_array_file(file); });
  check("a.npz", [](const fs::path& file) { read_array_file(file); });
  check("a.npy", [](const fs::path& file) { read_array_file(file); });
  check("rows.jsonl", [](const fs::path& file) { read_rows(file); });
  check("rows.jsonl.gz", [](const fs::path& file) { read_rows(file); });
  check("experiment.json", [](const fs::path& file) { read_experiment(file); });
}

TEST(RegularFile, IsReadWhole) {
  const test::TempFolder folder;
  const std::string content("a\0b\n", 4);
  EXPECT_EQ(read_text(folder.write("a.txt", content)), content);
  EXPECT_EQ(read_bytes(folder.path("a.txt")).size(), content.size());
  EXPECT_EQ(read_text(folder.write("empty", "")), "");
}

TEST(RegularFile, RefusesAtOnceWhatWouldNeverEnd) {
  const test::TempFolder folder;
  for_each_reader([&](const std::string& name, const auto& read) {
    const fs::path file = folder.path(name);
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
    EXPECT_TRUE(
        contains(test::message_of<FileError>([&] { read(file); }), {name, "not a regular file", "FIFO"}));
    fs::remove(file);
    fs::create_directory(file);
    EXPECT_TRUE(
        contains(test::message_of<FileError>([&] { read(file); }), {name, "not a regular file", "folder"}));
    fs::remove(file);
    fs::create_symlink("/dev/full", file);  // zeros without an end
    EXPECT_TRUE(
        contains(test::message_of<FileError>([&] { read(file); }), {name, "not a regular file", "device"}));
  });
}

TEST(RegularFile, SaysWhyTheSystemDoesNotOpenIt) {
  const test::TempFolder folder;
  for_each_reader([&](const std::string& name, const auto& read) {
    const fs::path file = folder.path(name);
    EXPECT_TRUE(contains(test::message_of<FileError>([&] { read(file); }), {name, "no such file"}));
    fs::create_symlink(name, file);  // to itself
    EXPECT_TRUE(contains(test::message_of<FileError>([&] { read(file); }), {name, "symbolic links"}));
    const fs::path longer = folder.path(std::string(300, 'x') + name);
    EXPECT_TRUE(contains(test::message_of<FileError>([&] { read(longer); }), {name, "too long"}));
    EXPECT_FALSE(file_exists(file));
    EXPECT_FALSE(file_exists(longer));
  });
  const std::string secret = folder.write("secret.npy", "x");
  fs::permissions(secret, fs::perms::none);
  if (::geteuid() != 0) {  // root may read it
    EXPECT_TRUE(contains(text_error(secret), {"secret.npy", "Permission denied"}));
  }
}

TEST(RegularFile, RefusesMoreTextThanAnyoneWrites) {
  const test::TempFolder folder;
  EXPECT_TRUE(contains(text_error(folder.write("a.json", std::string(1001, ' '))), {"1001", "at most 1000"}));
  const std::string sparse = folder.write("sparse.npy", "");
  fs::resize_file(sparse, std::uintmax_t{1} << 43);
  EXPECT_THROW(read_array_file(sparse), OutOfMemory);
}

TEST(RegularFile, NamesAGitLfsPointer) {
  const test::TempFolder folder;
  const std::string pointer =
      "version https://git-lfs.github.com/spec/v1\noid "
      "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa"
      "5e2ca24d17e2393\nsize 12345\n";
  for_each_reader([&](const std::string& name, const auto& read) {
    const std::string file = folder.write(name, pointer);
    EXPECT_TRUE(contains(test::message_of<FileError>([&] { read(file); }), {name, "Git LFS pointer"}));
  });
}

/// As gzip writes it; zlib's own writer, which the reader does not use.
std::string packed(const std::string& text) {
  const test::TempFolder folder;
  const fs::path file = folder.path("a.gz");
  gzFile stream = gzopen(file.c_str(), "wb");
  gzwrite(stream, text.data(), static_cast<unsigned>(text.size()));
  gzclose(stream);
  return read_text(file);
}

TEST(UnpackGzip, GivesTheTextOfAllMembers) {
  const std::string text(300'000, 'x');  // more than a chunk
  const auto unpack = [](const std::string& data) { return unpack_gzip(test::as_bytes(data), "a.gz"); };
  EXPECT_EQ(unpack(packed(text)), text);
  EXPECT_EQ(unpack(packed("")), "");
  EXPECT_EQ(unpack(packed("one ") + packed("two")), "one two");
  EXPECT_EQ(unpack(packed("padded") + std::string(512, '\0')), "padded");
}

TEST(UnpackGzip, RefusesWhatIsCutDamagedOrTooMuch) {
  const auto error = [](const std::string& data, std::uint64_t most_bytes = 1000) {
    return test::message_of<FileError>([&] { unpack_gzip(test::as_bytes(data), "a.gz", most_bytes); });
  };
  const std::string whole = packed("some text, some text");
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_TRUE(contains(error(whole.substr(0, size)), {"a.gz: cannot be unpacked"})) << size;
  }
  std::string damaged = whole;
  damaged[damaged.size() - 6] ^= 1;  // the checksum
  EXPECT_TRUE(contains(error(damaged), {"a.gz: cannot be unpacked", "check"}));
  EXPECT_TRUE(contains(error("plain text"), {"a.gz: cannot be unpacked"}));
  EXPECT_TRUE(contains(error(whole + "rest"), {"a.gz: cannot be unpacked"}));
  EXPECT_TRUE(contains(error(packed(std::string(1001, ' '))), {"a.gz: unpacks to more than 1000 bytes"}));
  EXPECT_TRUE(contains(error(packed(std::string(600, ' ')) + packed(std::string(600, ' '))),
                       {"more than 1000 bytes"}));
}

}  // namespace
}  // namespace moescope
