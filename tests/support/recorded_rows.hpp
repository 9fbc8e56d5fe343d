#pragma once

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/paths.hpp"

/// The rows that come with the project.
namespace moescope::test {

/// Files of rows, packed or not, in results/MACHINE; sorted by name, as a shell's pattern gives them.
inline std::vector<std::filesystem::path> recorded_rows(const std::string& machine) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(test::source_dir()) / "results" / machine)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz")) {
      files.push_back(entry.path());
    }
  }
  std::ranges::sort(files);
  return files;
}

/// Folders results/NAME of the GPUs that rows were recorded on: scripts/record.sh leaves their ceilings
/// there.
inline std::vector<std::filesystem::path> recorded_gpus() {
  std::vector<std::filesystem::path> folders;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(test::source_dir()) / "results")) {
    if (std::filesystem::exists(entry.path() / "ceilings.jsonl")) {
      folders.push_back(entry.path());
    }
  }
  std::ranges::sort(folders);
  return folders;
}

/// A test for each of those folders, by its name.
class RecordedGpu : public testing::TestWithParam<std::string> {
 protected:
  static std::filesystem::path file(const std::string& name) {
    return std::filesystem::path(test::source_dir()) / "results" / GetParam() / name;
  }
};

inline std::vector<std::string> recorded_gpu_names() {
  std::vector<std::string> names;
  for (const std::filesystem::path& folder : recorded_gpus()) {
    names.push_back(folder.filename());
  }
  return names;
}

/// Leaves a test that needs rows which nobody recorded on that device.
#define MOESCOPE_NEEDS_ROWS(name)                                         \
  do {                                                                    \
    if (!std::filesystem::exists(file(name))) {                           \
      GTEST_SKIP() << "not recorded on " << GetParam() << ": " << (name); \
    }                                                                     \
  } while (false)

/// Text of a file, unpacked where it is packed.
inline std::string read_packed_text(const std::filesystem::path& file) {
  std::string text;
  const gzFile stream = gzopen(file.c_str(), "rb");
  EXPECT_NE(stream, nullptr) << file;
  std::array<char, 1 << 16> chunk{};
  for (int count = 0; (count = gzread(stream, chunk.data(), static_cast<unsigned>(chunk.size()))) > 0;) {
    text.append(chunk.data(), static_cast<std::size_t>(count));
  }
  EXPECT_EQ(gzclose(stream), Z_OK) << file;
  return text;
}

}  // namespace moescope::test
