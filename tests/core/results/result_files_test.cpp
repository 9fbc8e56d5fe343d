#include <gtest/gtest.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <future>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/results/result.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/file_size_limit.hpp"
#include "tests/support/temporary_directory.hpp"

/// The folder of a run: who owns it, and what is in it when something goes wrong.
namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::read_text;
using test::TemporaryDirectory;
using test::write_text;

RunHeader file_header() {
  RunHeader header;
  header.run_id = "run";
  header.command_line = "moescope run";
  header.git_revision = "abc";
  header.version = "0";
  header.build = "Release";
  header.device = "a machine";
  header.driver = "none";
  header.started_utc = "2026-01-01T00:00:00Z";
  return header;
}

ResultRow file_row(const std::string& workload = "zipf:1") {
  ResultRow row;
  row.schedule = "staircase";
  row.stage = "layer";
  row.backend = "cpu";
  row.dtype = "bf16";
  row.workload = workload;
  row.l2_state = "cold";
  row.metric = "time_s";
  row.unit = "s";
  row.value = 1;
  return row;
}

TEST(ResultFiles, AreGoneWithoutARow) {
  const TemporaryDirectory directory;
  const fs::path out = directory.path() / "deep" / "out";
  for (const ExistingRun existing : {ExistingRun::kRefuse, ExistingRun::kContinue}) {
    {
      const ResultWriter writer(out, file_header(), existing);
      EXPECT_TRUE(fs::exists(out / "rows.jsonl"));
    }
    EXPECT_FALSE(fs::exists(directory.path() / "deep"));
  }
  ResultWriter(out, file_header()).write(file_row());
  EXPECT_EQ(read_rows(out / "rows.jsonl").at(0).rows.size(), 1U);
}

TEST(ResultFiles, OfOthersStayAsTheyAre) {
  for (const ExistingRun existing : {ExistingRun::kRefuse, ExistingRun::kContinue}) {
    const bool continues = existing == ExistingRun::kContinue;
    for (const char* name : {"run.json", "rows.csv", "figure.gp"}) {
      const TemporaryDirectory directory;
      write_text(directory.path() / name, "mine");
      EXPECT_EQ(error_text<FileError>([&] {
                  ResultWriter(OutputFolder(directory.path()), file_header(), existing, {"figure.gp"});
                }),
                continues && name != std::string("figure.gp")
                    ? (directory.path() / "rows.jsonl").string() + ": is missing beside " +
                          (directory.path() / name).string() +
                          ": put it back, or name another output directory, which starts anew"
                    : (directory.path() / name).string() + ": exists already; name another output directory");
      EXPECT_EQ(read_text(directory.path() / name), "mine");
      EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()), 1);
    }
  }
}

TEST(ResultFiles, BelongToOneWriter) {
  const TemporaryDirectory directory;
  ResultWriter first(directory.path(), file_header());
  for (const ExistingRun existing : {ExistingRun::kRefuse, ExistingRun::kContinue}) {
    EXPECT_THROW(ResultWriter(directory.path(), file_header(), existing), FileError);
  }
  first.write(file_row());
  EXPECT_EQ(read_rows(directory.path() / "rows.jsonl").at(0).rows.size(), 1U);
}

TEST(ResultFiles, HaveOneWinnerOfManyAtOnce) {
  for (int round = 0; round < 50; ++round) {
    const TemporaryDirectory directory;
    constexpr int kWriters = 4;
    std::atomic<int> ready = 0;
    std::vector<std::future<bool>> writers;
    for (int w = 0; w < kWriters; ++w) {
      writers.push_back(std::async(std::launch::async, [&] {
        ++ready;
        while (ready < kWriters) {
        }
        const std::string why = error_text<FileError>([&] {
          ResultWriter writer(directory.path() / "out", file_header());
          writer.write(file_row());
        });
        return why == "(no error)";
      }));
    }
    int winners = 0;
    for (auto& writer : writers) {
      winners += writer.get() ? 1 : 0;
    }
    EXPECT_EQ(winners, 1);
    EXPECT_EQ(read_rows(directory.path() / "out" / "rows.jsonl").at(0).rows.size(), 1U);
  }
}

TEST(ResultFiles, HaveWholeRowsWhenTheDiskIsFull) {
  (void)std::signal(SIGXFSZ, SIG_IGN);
  const TemporaryDirectory directory;
  ResultWriter writer(directory.path(), file_header());
  int rows = 0;
  {
    const test::FileSizeLimit full(5000);
    EXPECT_THROW(
        for (;; ++rows) { writer.write(file_row()); }, FileError);
  }
  EXPECT_GT(rows, 1);
  EXPECT_EQ(std::ssize(read_rows(directory.path() / "rows.jsonl").at(0).rows), rows);
  writer.write(file_row());
  EXPECT_EQ(std::ssize(read_rows(directory.path() / "rows.jsonl").at(0).rows), rows + 1);
}

TEST(ResultFiles, AreUtf8WhateverTheRowsSay) {
  const TemporaryDirectory directory;
  ResultWriter(directory.path(), file_header()).write(file_row("trace:\xFF\xC3\xA4.npy"));
  EXPECT_EQ(read_rows(directory.path() / "rows.jsonl").at(0).rows.at(0).workload,
            "trace:\xEF\xBF\xBD\xC3\xA4.npy");
  const std::string csv = read_text(directory.path() / "rows.csv");
  EXPECT_EQ(valid_utf8(csv), csv);
  EXPECT_NE(csv.find("trace:\xEF\xBF\xBD\xC3\xA4.npy"), std::string::npos);
}

}  // namespace
}  // namespace moescope
