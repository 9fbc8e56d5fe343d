#include "core/files/output_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/file_size_limit.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::FileSizeLimit;
using test::TemporaryDirectory;
using test::write_text;

std::size_t num_entries(const fs::path& folder) {
  return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

class OutputFileTest : public testing::Test {
 protected:
  OutputFileTest() { (void)std::signal(SIGXFSZ, SIG_IGN); }
  fs::path path(const std::string& name) const { return directory_.path() / name; }

  TemporaryDirectory directory_;
};

TEST_F(OutputFileTest, IsReplacedAsAWholeOrStays) {
  replace_file(path("a"), "first");
  EXPECT_EQ(test::read_text(path("a")), "first");
  replace_file(path("a"), "second");
  EXPECT_EQ(test::read_text(path("a")), "second");
  {
    const FileSizeLimit full(1000);
    const std::string why = error_text<FileError>([&] { replace_file(path("a"), std::string(2000, 'x')); });
    EXPECT_EQ(why, path("a").string() + ": cannot be written: File too large");
  }
  EXPECT_EQ(test::read_text(path("a")), "second");
  EXPECT_EQ(num_entries(directory_.path()), 1U) << "nothing half-written is left";
}

TEST_F(OutputFileTest, KeepsItsPermissions) {
  write_text(path("a"), "first");
  fs::permissions(path("a"), fs::perms(0640));
  OutputFile("output", path("a")).write("second");
  EXPECT_EQ(fs::status(path("a")).permissions(), fs::perms(0640));
}

TEST_F(OutputFileTest, IsCreatedByOneOfMany) {
  for (int round = 0; round < 20; ++round) {
    const fs::path file = path("file" + std::to_string(round));
    std::atomic<int> ready = 0;
    std::vector<std::future<bool>> writers;
    for (int w = 0; w < 4; ++w) {
      writers.push_back(std::async(std::launch::async, [&, w] {
        ++ready;
        while (ready < 4) {
        }
        return error_text<FileError>([&] { create_file(file, std::to_string(w)); }) == "(no error)";
      }));
    }
    int winners = 0;
    std::string winner;
    for (int w = 0; w < 4; ++w) {
      if (writers[static_cast<std::size_t>(w)].get()) {
        ++winners;
        winner = std::to_string(w);
      }
    }
    EXPECT_EQ(winners, 1);
    EXPECT_EQ(test::read_text(file), winner);
  }
}

TEST_F(OutputFileTest, RefusesWhatCannotBeWrittenAndChangesNothing) {
  write_text(path("file"), "mine");
  fs::create_directory(path("folder"));
  fs::create_symlink("loop", path("loop"));
  const auto why = [&](const fs::path& file) {
    return error_text<FileError>([&] { OutputFile("output", file); });
  };
  EXPECT_TRUE(contains(why(path("no/such")), "no/such: cannot be written: No such file or directory"));
  EXPECT_TRUE(contains(why(path("folder")), "folder: cannot be written: Is a directory"));
  EXPECT_TRUE(contains(why(path("folder/")), "Is a directory"));
  EXPECT_TRUE(contains(why(path("file/below")), "Not a directory"));
  EXPECT_TRUE(contains(why(path("loop")), "Too many levels of symbolic links"));
  EXPECT_TRUE(contains(why(path(std::string(300, 'x'))), "File name too long"));
  EXPECT_EQ(why(path("new")), "(no error)");
  EXPECT_EQ(why(path(std::string(255, 'x'))), "(no error)") << "the longest name there is";
  EXPECT_EQ(num_entries(directory_.path()), 3U);
  EXPECT_EQ(test::read_text(path("file")), "mine");
}

TEST_F(OutputFileTest, RefusesAFileOrFolderWithoutPermission) {
  if (::geteuid() == 0) {
    GTEST_SKIP() << "root may write everywhere";
  }
  write_text(path("file"), "mine");
  fs::permissions(path("file"), fs::perms(0400));
  fs::create_directory(path("folder"));
  fs::permissions(path("folder"), fs::perms(0500));
  for (const char* name : {"file", "folder/new"}) {
    EXPECT_TRUE(
        contains(error_text<FileError>([&] { OutputFile("output", path(name)); }), "Permission denied"));
  }
}

TEST_F(OutputFileTest, IsNoOtherFileOfTheCommandUnderAnyName) {
  write_text(path("input"), "mine");
  fs::create_symlink("input", path("link"));
  fs::create_symlink(path("link"), path("link of link"));
  fs::create_hard_link(path("input"), path("hard link"));
  fs::create_directory(path("folder"));
  fs::create_directory_symlink("folder", path("same folder"));
  const std::vector<fs::path> kept = {path("not there"), path("input"), path("folder/new"), "/dev/null"};
  const auto refusal = [&](const fs::path& file) {
    return error_text<InvalidArgument>([&] { OutputFile("save_trace", file, kept); });
  };
  for (const char* name : {"input", "./folder/../input", "link", "link of link", "hard link", "folder/new",
                           "same folder/new", "not there"}) {
    EXPECT_TRUE(refusal(path(name)).starts_with("save_trace = " + path(name).string() + ": ")) << name;
  }
  EXPECT_EQ(refusal(path("input2")), "(no error)");
  EXPECT_EQ(refusal(path("folder/input")), "(no error)") << "the same name elsewhere";
  EXPECT_EQ(refusal("/dev/null"), "(no error)") << "nothing is lost there";
  // And the other way round: the input is the link.
  EXPECT_NE(error_text<InvalidArgument>(
                [&] { OutputFile("output", path("input"), std::vector<fs::path>{path("link of link")}); }),
            "(no error)");
  EXPECT_EQ(test::read_text(path("input")), "mine");
}

TEST_F(OutputFileTest, FollowsLinksAndLeavesThem) {
  write_text(path("target"), "old");
  fs::create_symlink("target", path("link"));
  fs::create_symlink("later", path("dangling"));
  OutputFile("output", path("link")).write("new");
  OutputFile("output", path("dangling")).write("made");
  EXPECT_TRUE(fs::is_symlink(path("link")));
  EXPECT_EQ(test::read_text(path("target")), "new");
  EXPECT_TRUE(fs::is_symlink(path("dangling")));
  EXPECT_EQ(test::read_text(path("later")), "made");
}

TEST_F(OutputFileTest, WritesToDevicesAndPipesAsTheyAre) {
  OutputFile("output", "/dev/null").write("text");
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_EQ(error_text<FileError>([] { OutputFile("output", "/dev/full").write("text"); }),
            "/dev/full: cannot be written: No space left on device");
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_NE(error_text<FileError>([&] { OutputFile("output", path("pipe")).write("text"); }), "(no error)")
      << "nobody reads it, and nobody waits";
  const int reader = ::open(path("pipe").c_str(), O_RDONLY | O_NONBLOCK);
  ASSERT_GE(reader, 0);
  OutputFile("output", path("pipe")).write("text");
  char text[8] = {};
  EXPECT_EQ(::read(reader, text, sizeof(text)), 4);
  EXPECT_STREQ(text, "text");
  ::close(reader);
}

TEST_F(OutputFileTest, LinesAreWholeWhenTheDiskIsFull) {
  LineFile file(path("rows"), LineFile::Existing::kRefuse);
  file.append("one");
  {
    const FileSizeLimit full(10);
    EXPECT_EQ(error_text<FileError>([&] { file.append("two of many bytes"); }),
              path("rows").string() + ": cannot be written: File too large");
    EXPECT_EQ(test::read_text(path("rows")), "one\n") << "what had fitted is taken back";
  }
  file.append("three");
  EXPECT_EQ(test::read_text(path("rows")), "one\nthree\n");
  file.cut(4);
  file.append("four");
  EXPECT_EQ(test::read_text(path("rows")), "one\nfour\n");
}

TEST_F(OutputFileTest, LinesAreWrittenByOneProcessAtATime) {
  const auto open = [&](LineFile::Existing existing) {
    return error_text<FileError>([&] { const LineFile file(path("rows"), existing); });
  };
  {
    const LineFile file(path("rows"), LineFile::Existing::kContinue);
    EXPECT_TRUE(file.is_new());
    EXPECT_TRUE(contains(open(LineFile::Existing::kContinue), "another process is writing it"));
    EXPECT_TRUE(contains(open(LineFile::Existing::kRefuse), "exists already"));
  }
  EXPECT_TRUE(contains(open(LineFile::Existing::kRefuse), "exists already"));
  const LineFile file(path("rows"), LineFile::Existing::kContinue);
  EXPECT_FALSE(file.is_new());
}

TEST_F(OutputFileTest, LinesGoIntoRegularFilesOnly) {
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  fs::create_symlink("gone", path("dangling"));
  fs::create_directory(path("folder"));
  for (const char* name : {"pipe", "dangling", "folder"}) {
    EXPECT_NE(error_text<FileError>([&] { LineFile(path(name), LineFile::Existing::kContinue); }),
              "(no error)")
        << name;
  }
}

TEST_F(OutputFileTest, OnlyAFileMadeHereIsTakenAway) {
  write_text(path("old"), "");
  LineFile(path("old"), LineFile::Existing::kContinue).remove();
  EXPECT_TRUE(fs::exists(path("old")));
  LineFile fresh(path("new"), LineFile::Existing::kContinue);
  fs::rename(path("old"), path("new"));
  fresh.remove();
  EXPECT_TRUE(fs::exists(path("new"))) << "somebody else's by now";
  LineFile(path("newer"), LineFile::Existing::kRefuse).remove();
  EXPECT_FALSE(fs::exists(path("newer")));
}

}  // namespace
}  // namespace moescope
