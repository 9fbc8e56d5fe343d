#include "core/files/output_folder.hpp"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <future>
#include <set>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::TemporaryDirectory;
using test::write_text;

TEST(OutputFolder, IsGoneAgainWhenNothingWasPutThere) {
  const TemporaryDirectory directory;
  fs::create_directory(directory.path() / "there");
  {
    const OutputFolder folder(directory.path() / "there" / "a" / "b");
    const OutputFolder existing(directory.path() / "there");
    EXPECT_TRUE(fs::is_directory(folder.path()));
  }
  EXPECT_FALSE(fs::exists(directory.path() / "there" / "a"));
  EXPECT_TRUE(fs::exists(directory.path() / "there")) << "not made here";
  { write_text(OutputFolder(directory.path() / "c" / "d").path() / "file", "text"); }
  EXPECT_TRUE(fs::exists(directory.path() / "c" / "d" / "file"));
}

TEST(OutputFolder, SaysWhyItCannotBeMade) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "file", "");
  fs::create_symlink("loop", directory.path() / "loop");
  const auto why = [&](const fs::path& name) {
    return error_text<FileError>([&] { OutputFolder(directory.path() / name); });
  };
  for (const char* name : {"file", "file/below", "loop"}) {
    EXPECT_EQ(why(name), (directory.path() / name).string() + ": cannot be created: Not a directory");
  }
  EXPECT_TRUE(why(fs::path("new") / std::string(300, 'x')).ends_with("File name too long"));
  EXPECT_FALSE(fs::exists(directory.path() / "new"));
}

TEST(OutputFolder, IsAnotherOneForEachWhoAsksForANumber) {
  const TemporaryDirectory directory;
  std::vector<std::future<OutputFolder>> makers;
  for (int i = 0; i < 8; ++i) {
    makers.push_back(std::async(std::launch::async,
                                [&] { return OutputFolder::numbered(directory.path() / "results", "run"); }));
  }
  std::vector<OutputFolder> folders;
  std::set<std::string> names;
  for (auto& maker : makers) {
    folders.push_back(maker.get());
    names.insert(folders.back().path().filename());
  }
  EXPECT_EQ(names,
            (std::set<std::string>{"run", "run-2", "run-3", "run-4", "run-5", "run-6", "run-7", "run-8"}));
}

TEST(OutputFolder, KnowsWhatIsThere) {
  const TemporaryDirectory directory;
  fs::create_symlink("nowhere", directory.path() / "dangling");
  const OutputFolder folder(directory.path());
  folder.require_none_of(std::vector<std::string>{"a", "b"});
  EXPECT_NE(error_text<FileError>([&] {
              folder.require_none_of(std::vector<std::string>{"a", "dangling"});
            }).find("dangling: exists already"),
            std::string::npos);
}

/// $TMPDIR as long as it lives.
class TemporaryFolderOf {
 public:
  explicit TemporaryFolderOf(const std::string& folder)
      : before_(::getenv("TMPDIR") ? ::getenv("TMPDIR") : "") {
    ::setenv("TMPDIR", folder.c_str(), 1);
  }
  ~TemporaryFolderOf() { before_.empty() ? ::unsetenv("TMPDIR") : ::setenv("TMPDIR", before_.c_str(), 1); }
  TemporaryFolderOf(const TemporaryFolderOf&) = delete;
  TemporaryFolderOf& operator=(const TemporaryFolderOf&) = delete;

 private:
  std::string before_;
};

TEST(ScratchFolder, IsGoneWithEverythingInIt) {
  const TemporaryDirectory directory;
  const TemporaryFolderOf temporary(directory.path());
  fs::path system;
  fs::path own;
  fs::create_directory(directory.path() / "beside");
  {
    const ScratchFolder scratch;
    const ScratchFolder beside(directory.path() / "beside");
    system = scratch.path();
    own = beside.path();
    EXPECT_EQ(system.parent_path(), directory.path());
    EXPECT_EQ(own.parent_path(), directory.path() / "beside");
    write_text(system / "file", "text");
  }
  EXPECT_FALSE(fs::exists(system));
  EXPECT_FALSE(fs::exists(own));
}

TEST(ScratchFolder, NamesTheVariableThatIsWrong) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "file", "");
  for (const std::string& folder :
       {std::string("/no/such/folder"), (directory.path() / "file").string(), "/" + std::string(5000, 'x')}) {
    const TemporaryFolderOf temporary(folder);
    const std::string why = error_text<FileError>([] { const ScratchFolder scratch; });
    EXPECT_NE(why.find("TMPDIR"), std::string::npos) << why;
    EXPECT_LT(why.size(), 400U);
  }
}

}  // namespace
}  // namespace moescope
