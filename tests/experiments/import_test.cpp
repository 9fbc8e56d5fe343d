// moescope import and inspect FILE, the real program.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "core/results/result.hpp"
#include "tests/support/file_builders.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/run_moescope.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using test::contains;
using test::Outcome;
using test::run_moescope;
using test::TemporaryDirectory;

std::string data(const std::string& name) { return test::source_path("tests/data/import/" + name); }

TEST(ImportCommand, MakesATraceThatInspectShowsLayerByLayer) {
  const TemporaryDirectory directory;
  const Outcome imported = run_moescope(
      {"import", data("layers_first.npz"), "--num-experts", "8", "--system", "gshard", "--output", "t.npz"},
      directory);
  ASSERT_EQ(imported.code, 0) << imported.err;
  EXPECT_TRUE(
      contains(imported.out, {"format ids (recognised)", "gshard, 2 layers, 16 tokens, K 3 of 8 experts",
                              "'trace:t.npz#layer=all' all of them"}));
  for (const std::vector<std::string>& arguments :
       {std::vector<std::string>{"inspect", "t.npz"}, {"inspect", "--workload", "trace:t.npz#layer=all"}}) {
    const Outcome inspected = run_moescope(arguments, directory);
    ASSERT_EQ(inspected.code, 0) << inspected.err;
    EXPECT_TRUE(contains(inspected.out, {"2 layers", "max/mean", "\n    1 ", "\n    3 "}));
  }
}

TEST(ImportCommand, ATraceThatKnowsItsModelSaysHowWideTheLayerIs) {
  const TemporaryDirectory directory;
  const Outcome imported = run_moescope(
      {"import", data("logits.npz"), "--top-k", "3", "--model", data("mixtral"), "--output", "t.npz"},
      directory);
  ASSERT_EQ(imported.code, 0) << imported.err;
  const auto ran = [&](const std::string& system, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"run",
                                          "--system",
                                          system,
                                          "--workload",
                                          "trace:t.npz#layer=0",
                                          "-q",
                                          "--min-samples",
                                          "2",
                                          "--max-time",
                                          "0.001",
                                          "--output",
                                          system + std::to_string(more.size())};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome outcome = run_moescope(arguments, directory);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    const auto runs = read_rows(directory.path() / (system + std::to_string(more.size())) / "rows.jsonl");
    const ResultRow& row = runs.at(0).rows.at(0);
    return std::pair(row.hidden_size, row.expert_size.value_or(0));
  };
  EXPECT_EQ(ran("gshard", {}), std::pair(std::int64_t{12}, std::int64_t{5}));  // of config.json
  EXPECT_EQ(ran("gshard", {"-d", "16"}), std::pair(std::int64_t{16}, std::int64_t{5}));
}

TEST(ImportCommand, HoldsLogitsAgainstRecordedRouting) {
  const TemporaryDirectory directory;
  const Outcome same = run_moescope({"import", data("logits.npz"), "--axes", "layers,tokens,experts",
                                     "--layers", "1,3", "-K", "3", "--against", data("layers_first.npz")},
                                    directory);
  EXPECT_EQ(same.code, 0) << same.err;
  EXPECT_TRUE(contains(same.out, {"32 rows compared as sets, 32 equal", "0 differ\n"}));
  const Outcome other = run_moescope({"import", data("logits.npz"), "--axes", "layers,tokens,experts", "-K",
                                      "3", "--against", data("routed_experts.npz"), "--output", "t.npz"},
                                     directory);
  EXPECT_EQ(other.code, 0) << other.err;
  const Outcome wrong = run_moescope({"import", data("logits.npz"), "--axes", "layers,tokens,experts", "-K",
                                      "2", "--against", data("routed_experts.npz")},
                                     directory);
  EXPECT_EQ(wrong.code, test::code_of(ExitCode::kInvalidArgument)) << wrong.out;
}

TEST(ImportCommand, TakesWhatTheModelSays) {
  const TemporaryDirectory directory;
  const Outcome imported = run_moescope(
      {"import", data("routed_experts.npz"), "--model", data("mixtral"), "--output", "t.npz"}, directory);
  ASSERT_EQ(imported.code, 0) << imported.err;
  const std::string path = (directory.path() / "t.npz").string();
  const ArrayFile trace = read_array_file(path);
  EXPECT_EQ(trace.get(path, "system").to_text(path, "system"), "gshard");
  EXPECT_EQ(trace.get(path, "hidden_size").to_integers(path, "hidden_size").front(), 12);
  EXPECT_EQ(trace.get(path, "num_experts").to_integers(path, "num_experts").front(), 8);
  const Outcome clash = run_moescope({"import", data("routed_experts.npz"), "--model", data("mixtral"),
                                      "--num-experts", "9", "--output", "u.npz"},
                                     directory);
  EXPECT_EQ(clash.code, test::code_of(ExitCode::kInvalidArgument));
  EXPECT_TRUE(contains(clash.err, {"--num-experts = 9", "has 8"}));
}

TEST(ImportCommand, MakesASnapshotOfALayer) {
  const TemporaryDirectory directory;
  const Outcome random = run_moescope(
      {"import", data("qwen"), "--layer", "1", "-L", "5", "--output", "s.safetensors"}, directory);
  ASSERT_EQ(random.code, 0) << random.err;
  EXPECT_TRUE(
      contains(random.out, {"deepseekmoe", "5 tokens, random, N(0, 1), seed 0: not what the model saw"}));
  const Outcome hidden = run_moescope({"import", data("mixtral"), "--layer", "1", "--hidden",
                                       data("mixtral/hidden.safetensors"), "--output", "m.safetensors"},
                                      directory);
  ASSERT_EQ(hidden.code, 0) << hidden.err;
  const ArrayFile snapshot = read_safetensors(directory.path() / "m.safetensors");
  EXPECT_EQ(snapshot.arrays.at("hidden_states").shape, (std::vector<std::int64_t>{16, 12}));
  EXPECT_EQ(snapshot.metadata.at("layer"), "1");
  EXPECT_EQ(snapshot.metadata.at("hidden_states"), "of hidden.safetensors");
}

TEST(ImportCommand, RefusesOptionsOfTheOtherKindAndItsOwnInputs) {
  const TemporaryDirectory directory;
  const auto refused = [&](std::vector<std::string> arguments, const char* what) {
    const Outcome outcome = run_moescope(std::move(arguments), directory);
    EXPECT_EQ(outcome.code, test::code_of(ExitCode::kInvalidArgument)) << outcome.out;
    EXPECT_TRUE(contains(outcome.err, {what}));
  };
  refused({"import", data("mixtral"), "--output", "s.safetensors"}, "layer = none: ");
  refused({"import", data("mixtral"), "--layer", "1", "--output", "s.npz"}, "must end in .safetensors");
  refused({"import", data("mixtral"), "--layer", "1", "-K", "3", "--output", "s.safetensors"},
          "top_k = given");
  refused({"import", data("rows.csv"), "--layer", "1", "--output", "t.npz"}, "layer = given");
  refused({"import", data("rows.csv"), "--output", "t.csv"}, "must end in .npz");
  refused({"import", data("rows.csv")}, "output = none");
  refused({"import", data("rows.csv"), "--key", "ids=x", "--output", "t.npz"}, "key = ids=x");
  test::write_text(directory.path() / "t.npz",
                   test::zip({{"expert_ids.npy", test::npy("<i4", "(1, 1)", std::string(4, '\0'))}}));
  refused({"import", "t.npz", "--num-experts", "1", "--output", "t.npz"}, "output");
  // A checkpoint's files are inputs, although the folder is what is named.
  std::filesystem::copy(data("mixtral"), directory.path() / "mine");
  std::filesystem::path shard;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path() / "mine")) {
    shard = entry.path().extension() == ".safetensors" ? entry.path() : shard;
  }
  const std::string before = test::read_text(shard);
  refused({"import", "mine", "--layer", "1", "--output", shard.string()}, "output");
  EXPECT_EQ(test::read_text(shard), before);
  EXPECT_FALSE(std::filesystem::exists(directory.path() / "s.safetensors"));
}

TEST(ImportCommand, SaysWhatIsWantedWhereNothingOrAnotherThingIsGiven) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory.path() / "empty");
  const Outcome none = run_moescope({"import"}, directory);
  EXPECT_EQ(none.code, test::code_of(ExitCode::kUsage));
  EXPECT_TRUE(contains(none.err, {"is required: ", "for example moescope import ",
                                  "(moescope import --help shows what is possible)"}));
  const Outcome elsewhere = run_moescope({"run", "--model", "mixtral"}, directory);
  EXPECT_EQ(elsewhere.code, test::code_of(ExitCode::kUsage));
  EXPECT_TRUE(contains(elsewhere.err, {"--model is an option of import (moescope run --help shows"}));
  const auto refused = [&](const char* model, const char* what) {
    const Outcome outcome =
        run_moescope({"import", data("rows.csv"), "--model", model, "--output", "t.npz"}, directory);
    EXPECT_EQ(outcome.code, test::code_of(ExitCode::kBadFile)) << outcome.out;
    EXPECT_TRUE(contains(outcome.err, {what, "wanted is the config.json of a model"}));
  };
  refused("empty", "empty: this folder has no config.json");
  refused("mistralai/Mixtral-8x7B", "no such file or folder");
}

}  // namespace
}  // namespace moescope
