// The real program on files that nobody here wrote: exit codes, which file is named, and that nothing waits.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;
using test::write_text;

/// Every command line that reads a file, with FILE where its name goes.
struct Reader {
  std::string file;
  std::vector<std::string> arguments;
};

std::vector<Reader> readers() {
  return {{"d.json", {"simulate", "--preset", "tiny", "--device", "./d.json"}},
          {"c.json", {"simulate", "--preset", "tiny", "--calibration", "c.json"}},
          {"e.json", {"sweep", "e.json", "--dry-run"}},
          {"r.json",
           {"profile", "-L", "4", "--grid", "4x4", "-d", "8", "-K", "2", "--schedule", "token_centric",
            "--source", "recorded:r.json", "--output", "out"}},
          {"s.safetensors", {"inspect", "--workload", "snapshot:s.safetensors"}},
          {"t.npz", {"inspect", "--workload", "trace:t.npz", "--grid", "4x4", "-d", "8"}},
          {"i.npz", {"import", "i.npz", "--num-experts", "4", "--output", "out.npz"}},
          {"j.json", {"import", "j.json", "--format", "router_trace", "--output", "out.npz"}},
          {"m.jsonl", {"import", "m.jsonl", "--format", "megatron", "--output", "out.npz"}},
          {"c2.csv", {"import", "c2.csv", "--top-k", "1", "--output", "out.npz"}},
          {"config.json", {"import", "x.csv", "--model", "config.json", "--output", "out.npz"}},
          {"a.jsonl", {"report", "a.jsonl", "--output", "a.html"}},
          {"b.jsonl.gz", {"claims", "b.jsonl.gz"}},
          {"f.jsonl", {"roofline", "f.jsonl"}}};
}

void expect_bad_file(const Reader& reader, const TemporaryDirectory& directory, const char* what) {
  const Outcome outcome = run_moescope(reader.arguments, directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kBadFile)) << what << ": " << reader.file << "\n"
                                                                << outcome.err;
  EXPECT_NE(outcome.err.find(reader.file), std::string::npos) << what << ": " << outcome.err;
  EXPECT_EQ(outcome.err.find("internal error"), std::string::npos) << what << ": " << outcome.err;
}

TEST(InputFiles, ThatAreNoRegularFilesAreRefusedByEveryCommand) {
  for (const Reader& reader : readers()) {
    const TemporaryDirectory directory;
    const fs::path file = directory.path() / reader.file;
    ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
    expect_bad_file(reader, directory, "a FIFO");
    fs::remove(file);
    fs::create_directory(file);
    expect_bad_file(reader, directory, "a folder");
    fs::remove(file);
    fs::create_symlink("/dev/full", file);
    expect_bad_file(reader, directory, "a file without an end");
    fs::remove(file);
    fs::create_symlink(reader.file, file);
    expect_bad_file(reader, directory, "a link to itself");
    EXPECT_FALSE(fs::exists(directory.path() / "out"));
    EXPECT_FALSE(fs::exists(directory.path() / "a.html"));
  }
}

TEST(InputFiles, OfDeepOrRepeatingJsonAreRefusedByEveryCommand) {
  const std::string deep(100'000, '[');
  for (const Reader& reader : readers()) {
    if (!reader.file.ends_with(".json") && !reader.file.ends_with(".jsonl")) {
      continue;
    }
    const TemporaryDirectory directory;
    write_text(directory.path() / reader.file, "{\"schema_version\": " + deep + "\n");
    expect_bad_file(reader, directory, "deep nesting");
    write_text(directory.path() / reader.file, "{\"name\": 1, \"name\": 2}\n");
    expect_bad_file(reader, directory, "a key twice");
    write_text(directory.path() / reader.file, "{\"name\": \"\xff\"}\n");
    expect_bad_file(reader, directory, "not UTF-8");
  }
  const TemporaryDirectory directory;
  write_text(directory.path() / "s.safetensors", test::safetensors("{\"a\":" + deep, ""));
  expect_bad_file({"s.safetensors", {"inspect", "--workload", "snapshot:s.safetensors"}}, directory,
                  "deep nesting");
}

TEST(InputFiles, OfGoldensDoNotHideEachOthersResults) {
  const TemporaryDirectory directory;
  const std::string good = test::source_path("tests/data/golden/router_all.npz");
  // A grid that the file's own arrays contradict, and a file that is none.
  const auto number = [](std::int64_t value) {
    return test::npy("<i8", "()", test::bytes_of<std::int64_t>({value}));
  };
  const auto logits = [](const char* shape, std::size_t count) {
    return test::npy("<f4", shape, std::string(4 * count, '\0'));
  };
  write_text(directory.path() / "tokens-differ.npz",
             test::zip({{"row_logits.npy", logits("(2, 2)", 4)},
                        {"col_logits.npy", logits("(1, 2)", 2)},
                        {"top_k.npy", number(9)},
                        {"indices.npy", test::npy("<i8", "(2,)", std::string(16, '\0'))}}));
  const Outcome outcome = run_moescope({"golden", "tokens-differ.npz", good, "absent.npz", good}, directory);
  EXPECT_EQ(outcome.code, static_cast<int>(ExitCode::kCheckFailed)) << outcome.err;
  for (const char* word : {"tokens-differ.npz", "absent.npz", "router_all.npz", "FAILED", "ok"}) {
    EXPECT_NE(outcome.out.find(word), std::string::npos) << word << "\n" << outcome.out;
  }
}

}  // namespace
}  // namespace moescope
