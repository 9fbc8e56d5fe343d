#include "core/base/caught_error.hpp"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

template <class Act>
CaughtError caught(const Act& act) {
  try {
    act();
  } catch (...) {
    return caught_error();
  }
  return {ExitCode::kOk, ""};
}

TEST(CaughtError, KeepsWhatAnErrorSays) {
  const CaughtError error = caught([] { throw InvalidArgument("top_k", "0", "must be >= 1"); });
  EXPECT_EQ(error.code, ExitCode::kInvalidArgument);
  EXPECT_EQ(error.message, "top_k = 0: must be >= 1");
}

TEST(CaughtError, NamesTheFileOfTheFileSystem) {
  const std::string name(5000, 'n');
  const CaughtError error = caught([&] { (void)std::filesystem::exists(name); });
  EXPECT_EQ(error.code, ExitCode::kBadFile);
  EXPECT_NE(error.message.find(name), std::string::npos);
  EXPECT_EQ(error.message.find("internal"), std::string::npos);
}

TEST(CaughtError, TakesStreamsAndSystemCallsForFiles) {
  const test::TemporaryDirectory directory;
  const CaughtError stream = caught([&] {
    std::ifstream file(directory.path());  // opens, and reading throws
    file.exceptions(std::ios::badbit);
    std::string line;
    std::getline(file, line);
  });
  EXPECT_EQ(stream.code, ExitCode::kBadFile);
  EXPECT_EQ(caught([] { throw std::system_error(std::make_error_code(std::errc::io_error)); }).code,
            ExitCode::kBadFile);
}

TEST(CaughtError, KnowsWhatIsTooLittleMemory) {
  EXPECT_EQ(caught([] { throw std::bad_alloc(); }).code, ExitCode::kOutOfMemory);
  EXPECT_EQ(caught([] { throw std::bad_array_new_length(); }).code, ExitCode::kOutOfMemory);
  EXPECT_EQ(caught([] {
              std::vector<double> values;
              values.reserve(std::numeric_limits<std::size_t>::max() / 2);
            }).code,
            ExitCode::kOutOfMemory);
  EXPECT_EQ(caught([] {
              throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
            }).code,
            ExitCode::kOutOfMemory);
}

TEST(CaughtError, EverythingElseIsABug) {
  EXPECT_EQ(caught([] { (void)std::vector<int>().at(3); }).code, ExitCode::kInternal);
  EXPECT_EQ(caught([] { throw InternalError("x"); }).code, ExitCode::kInternal);
  EXPECT_EQ(caught([] { throw 3; }).code, ExitCode::kInternal);
}

}  // namespace
}  // namespace moescope
