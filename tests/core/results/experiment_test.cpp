#include "core/results/experiment.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using nlohmann::json;
using test::error_text;
using test::JsonSchema;
using test::read_text;

std::vector<std::string> labels(const Experiment& experiment) {
  std::vector<std::string> all;
  for (const ExperimentPoint& point : experiment.points) {
    all.push_back(point.label);
  }
  return all;
}

TEST(Experiment, MultipliesItsAxesWithWorkloadsFastest) {
  const Experiment experiment = parse_experiment(R"({
    "name": "x", "workloads": ["zipf:1", "uniform"], "presets": ["tiny"],
    "axes": {"top_k": [2, 4], "dtype": "fp32"}, "schedules": ["staircase"], "min_samples": 5, "max_time_s": 0.5})",
                                                 "file");
  EXPECT_EQ(labels(experiment), (std::vector<std::string>{"top_k 2, zipf:1", "top_k 2, uniform",
                                                          "top_k 4, zipf:1", "top_k 4, uniform"}));
  const ExperimentPoint& last = experiment.points.back();
  EXPECT_EQ(last.preset, "tiny");
  EXPECT_EQ(last.dtype, "fp32");
  EXPECT_EQ(last.top_k, 4);
  EXPECT_EQ(last.workload, "uniform");
  EXPECT_EQ(last.system, "omnimoe");
  EXPECT_EQ(last.num_tokens, std::nullopt);
  EXPECT_EQ(experiment.min_samples, 5);
  EXPECT_EQ(experiment.max_time_s, 0.5);
}

TEST(Experiment, TakesZippedAxesInStep) {
  const Experiment experiment = parse_experiment(R"({
    "name": "x", "axes": {"num_tokens": [1, 2], "seed": [7, 8], "top_k": [3, 5]}, "zip": [["top_k", "num_tokens"]]})",
                                                 "file");
  EXPECT_EQ(labels(experiment),
            (std::vector<std::string>{"num_tokens 1, top_k 3, seed 7", "num_tokens 1, top_k 3, seed 8",
                                      "num_tokens 2, top_k 5, seed 7", "num_tokens 2, top_k 5, seed 8"}));
}

TEST(Experiment, ZipsSystemsWithTheirPresets) {
  const Experiment experiment = parse_experiment(R"({
    "name": "x", "systems": ["omnimoe", "gshard"], "presets": ["table-a-1024-512", "table-a-1024-2"],
    "zip": [["systems", "presets"]]})",
                                                 "file");
  ASSERT_EQ(experiment.points.size(), 2U);
  EXPECT_EQ(experiment.points[1].system, "gshard");
  EXPECT_EQ(experiment.points[1].preset, "table-a-1024-2");
}

TEST(Experiment, DrawsDifferentPointsThatCanBe) {
  const std::string text =
      R"({"name": "x", "workloads": ["zipf:1", "uniform"], "draw": {"count": 30, "seed": 5},
    "axes": {"grid": ["4x4", "8x8"], "top_k": [1, 16, 17, 64], "num_tokens": [1, 2, 3], "seed": [0, 1, 2, 3]},
    "zip": [["top_k", "seed"]]})";
  const Experiment experiment = parse_experiment(text, "file");
  ASSERT_EQ(experiment.points.size(), 30U);
  std::set<std::string> ids;
  std::set<std::string> grids;
  for (const ExperimentPoint& point : experiment.points) {
    ids.insert(point.id);
    grids.insert(point.grid);
    EXPECT_LE(*point.top_k, point.grid == "4x4" ? 16 : 64);
    EXPECT_EQ(*point.top_k, (std::array{1, 16, 17, 64})[static_cast<std::size_t>(*point.seed)]) << "zipped";
  }
  EXPECT_EQ(ids.size(), 30U);
  EXPECT_EQ(grids.size(), 2U);
  EXPECT_EQ(labels(parse_experiment(text, "file")), labels(experiment));
  const Experiment other = parse_experiment(text, "file", 6);
  EXPECT_NE(labels(other), labels(experiment));
  EXPECT_NE(other.canonical, experiment.canonical);
  EXPECT_NE(other.canonical.find("\"seed\":6"), std::string::npos) << other.canonical;
}

TEST(Experiment, DrawsEveryValueAboutAsOften) {
  std::string seeds = "[0";
  for (int i = 1; i < 2000; ++i) {
    seeds += fmt::format(",{}", i);
  }
  const Experiment experiment = parse_experiment(
      R"({"name": "x", "draw": {"count": 4000}, "axes": {"num_tokens": [1, 2, 3, 4], "seed": )" + seeds +
          "]}}",
      "file");
  std::map<std::int64_t, int> drawn;
  for (const ExperimentPoint& point : experiment.points) {
    ++drawn[*point.num_tokens];
  }
  for (const auto& [tokens, times] : drawn) {
    EXPECT_NEAR(times, 1000, 110) << tokens;  // four standard deviations
  }
  EXPECT_EQ(drawn.size(), 4U);
}

TEST(Experiment, NamesPointsByWhatTheyAskFor) {
  const auto id = [](const std::string& axes) {
    return parse_experiment(R"({"name": "x", "axes": )" + axes + "}", "file").points.at(0).id;
  };
  EXPECT_EQ(id(R"({"num_tokens": 1, "top_k": 2})"), id(R"({"top_k": [2], "num_tokens": [1]})"));
  EXPECT_NE(id(R"({"num_tokens": 1, "top_k": 2})"), id(R"({"num_tokens": 2, "top_k": 1})"));
  const auto canonical = [](const std::string& text) { return parse_experiment(text, "file").canonical; };
  EXPECT_EQ(canonical(R"({"name": "x", "about": "y"})"), canonical(R"({ "about":"y","name":"x" })"));
  EXPECT_NE(canonical(R"({"name": "x"})"), canonical(R"({"name": "x", "min_samples": 3})"));
}

TEST(Experiment, ATunedScheduleMakesOtherPointsAndMinutesDoNot) {
  const auto parsed = [](const std::string& more) {
    return parse_experiment(R"({"name": "x", "workloads": ["zipf:1"])" + more + "}", "file");
  };
  const Experiment plain = parsed("");
  EXPECT_EQ(plain.tuned_on, "");
  EXPECT_TRUE(plain.minutes.empty());
  const Experiment tuned = parsed(R"(, "tuned_on": "zipf:0")");
  EXPECT_EQ(tuned.tuned_on, "zipf:0");
  EXPECT_NE(tuned.points[0].id, plain.points[0].id);
  const Experiment timed = parsed(R"(, "minutes": {"cpu": 0.5, "cuda": 2})");
  EXPECT_EQ(timed.minutes, (std::map<std::string, double>{{"cpu", 0.5}, {"cuda", 2}}));
  EXPECT_EQ(timed.points[0].id, plain.points[0].id);
  EXPECT_EQ(timed.canonical, plain.canonical) << "the same experiment goes on under a better estimate";
}

TEST(Experiment, NamesFieldAndValueOfWhatCannotWork) {
  const auto message = [](const std::string& text) {
    return error_text<FileError>([&] { parse_experiment(text, "f"); });
  };
  const auto has = [&](const std::string& members, const std::string& expected) {
    const std::string actual = message(R"({"name": "x", )" + members + "}");
    EXPECT_NE(actual.find(expected), std::string::npos) << members << "\n" << actual;
  };
  EXPECT_EQ(message("no JSON").find("f: line 1, column 2: not valid JSON: "), 0U);
  EXPECT_EQ(message("{\"name\": \"x\",\n}").find("f: line 2, column 1: not valid JSON: "), 0U);
  EXPECT_EQ(message(R"({"name": "x", "zip": )" + std::string(1000000, '[')).find("f: zip[0][0]"), 0U);
  has(R"("axes": {"num_tokens": 16, "top_k": 2, "num_tokens": 32})",
      "f: axes: key 'num_tokens' stands there twice");
  EXPECT_NE(message(R"({"name": "x", "name": "y"})").find("'name' stands there twice"), std::string::npos);
  EXPECT_NE(message("{\"name\": \"x\", \"about\": \"\xff\"}").find("f: line 1, column"), std::string::npos);
  has(R"("max_time_s": NaN)", "NaN is no number");
  EXPECT_EQ(message("[]"), "f: is not a JSON object");
  EXPECT_EQ(message("{}"), "f: name: \"\": an experiment needs one, of letters, digits, - and _");
  EXPECT_EQ(message(R"({"name": "../x"})"),
            "f: name: \"../x\": an experiment needs one, of letters, digits, - and _");
  has(R"("axis": {})", "f: axis: is not one of name, about");
  has(R"("axes": [])", "f: axes: []: must be an object");
  has(R"("axes": {"tokens": 1})", "f: axes.tokens: is not one of num_tokens, hidden_size");
  has(R"("axes": {"num_tokens": []})", "f: axes.num_tokens: []: needs a value");
  has(R"("axes": {"tile_tokens": [64, 129]})", "f: axes.tile_tokens: 129: must be an integer <= 128");
  has(R"("axes": {"tile_tokens": 0})", "f: axes.tile_tokens: 0: must be an integer >= 1");
  has(R"("axes": {"num_tokens": [8, -1]})", "f: axes.num_tokens: -1: must be an integer >= 1");
  has(R"("axes": {"num_tokens": 1.5})", "f: axes.num_tokens: 1.5: must be an integer >= 1");
  has(R"("axes": {"num_tokens": 18446744073709551615})", "f: axes.num_tokens: 18446744073709551615: must be");
  has(R"("axes": {"dtype": "fp8"})", "f: axes.dtype: \"fp8\": dtype = fp8");
  has(R"("axes": {"dtype": 16})", "f: axes.dtype: 16: must be a string");
  has(R"("axes": {"grid": "8"})", "f: axes.grid: \"8\": grid = 8: must be ROWSxCOLS");
  has(R"("axes": {"l2": "tepid"})", "f: axes.l2: \"tepid\": l2 = tepid: must be cold or warm");
  has(R"("axes": {"activation": "tanh"})", "f: axes.activation: \"tanh\"");
  has(R"("axes": {"gates": "hard"})", "f: axes.gates: \"hard\"");
  has(R"("axes": {"grid": "8x8", "num_experts": 64})",
      "f: axes.num_experts: 64: cannot be given beside axes.grid");
  has(R"("axes": {"seed": [1, 1]})", "f: axes: make the point \"seed 1\" twice");
  has(R"("workloads": "zipf:1")", "f: workloads: \"zipf:1\": must be a list of strings");
  has(R"("workloads": ["zipf:steep"])", "f: workloads: \"zipf:steep\": workload = zipf:steep");
  has(R"("schedules": ["fastest"])", "f: schedules: \"fastest\": schedule = fastest");
  has(R"("schedules": ["auto", "auto"])", "f: schedules: \"auto\": stands there twice");
  has(R"("systems": ["pkm", "gshard"], "axes": {"heads": [2, 4]})",
      "f: axes.heads: 2: heads = 2: is for pkm, peer; gshard has none");
  has(R"("axes": {"key_size": 64})",
      "f: axes.key_size: 64: key_size = 64: is for pkm, peer; omnimoe has none");
  has(R"("systems": ["peer"], "axes": {"grid": "8x8"})", "f: axes.grid: \"8x8\": grid = 8x8: is for omnimoe");
  has(R"("systems": ["vax"])", "f: systems: \"vax\": system = vax");
  has(R"("presets": ["huge"])", "f: presets: \"huge\": preset = huge");
  has(R"("systems": ["gshard"], "presets": ["table-a-1024-512"])",
      "f: presets: \"table-a-1024-512\": preset =");
  has(R"("metrics": [1])", "f: metrics: 1: must be a string");
  has(R"("min_samples": 1)", "f: min_samples: 1: must be an integer >= 2");
  has(R"("max_time_s": 0)", "f: max_time_s: 0: must be a number > 0");
  has(R"("tuned_on": "zipf:steep")", "f: tuned_on: \"zipf:steep\": workload = zipf:steep");
  has(R"("tuned_on": 1)", "f: tuned_on: 1: must be a string");
  has(R"("minutes": 3)", "f: minutes: 3: must be an object of backends");
  has(R"("minutes": {"tpu": 3})", "f: minutes.tpu: is not one of cpu, cuda, model");
  has(R"("minutes": {"cpu": 0})", "f: minutes.cpu: 0: must be a number > 0");
  has(R"("zip": [["seed"]])", "f: zip: [\"seed\"]: must be a list of two axes or more");
  has(R"("zip": [["seed", "top_k"]])", "f: zip: \"seed\": is not an axis of this experiment");
  has(R"("axes": {"seed": [1, 2], "top_k": 1}, "zip": [["seed", "top_k"]])",
      "seed has 2 values, top_k has 1");
  has(R"("axes": {"seed": 1, "top_k": 1}, "zip": [["seed", "seed"]])", "f: zip: \"seed\": is zipped twice");
  has(R"("draw": 3)", "f: draw: 3: must be an object of count and seed");
  has(R"("draw": {})", "f: draw.count: null: must be an integer >= 1");
  has(R"("draw": {"count": 2, "from": 1})", "f: draw.from: is not one of count, seed");
  has(R"("draw": {"count": 20001})", "f: draw.count: 20001: must be at most 20000");
  has(R"("draw": {"count": 1, "seed": -1})", "f: draw.seed: -1: must be an integer >= 0");
  has(R"("draw": {"count": 3}, "axes": {"seed": [1, 2]})",
      "f: draw.count: 3: the axes make 2 points that were found");
  has(R"("draw": {"count": 1}, "axes": {"grid": "4x4", "top_k": 17})",
      "f: draw.count: 1: the axes make 0 points that were found");
  std::string values = "[1";
  for (int i = 2; i <= 400; ++i) {
    values += ',';
    values += std::to_string(i);
  }
  values += "]";
  has("\"axes\": {\"seed\": " + values + ", \"top_k\": " + values + "}",
      "f: axes: make more than 20000 points");
  EXPECT_EQ(error_text<FileError>([] { read_experiment("absent.json"); }), "absent.json: no such file");
}

TEST(ExperimentSchema, IsThePublishedFileAndAcceptsOurExperiments) {
  EXPECT_EQ(experiment_schema_json(), read_text(test::source_path("core/results/experiment.schema.json")));
  const JsonSchema schema(json::parse(experiment_schema_json()));
  const std::filesystem::path configs = std::filesystem::path(test::source_dir()) / "experiments" / "configs";
  for (const auto& entry : std::filesystem::directory_iterator(configs)) {
    EXPECT_EQ(schema.violation(json::parse(read_text(entry.path()))), "") << entry.path();
  }
}

/// The schema and the parser know the same keys.
TEST(ExperimentSchema, RefusesWhatTheParserRefuses) {
  const JsonSchema schema(json::parse(experiment_schema_json()));
  for (const char* text :
       {R"({})", R"({"name": 1})", R"({"name": "x", "axis": {}})", R"({"name": "x", "axes": {"tokens": 1}})",
        R"({"name": "x", "axes": {"num_tokens": []}})", R"({"name": "x", "axes": {"num_tokens": "8"}})",
        R"({"name": "x", "axes": {"dtype": 16}})", R"({"name": "x", "workloads": "zipf:1"})",
        R"({"name": "x", "zip": [["seed"]]})", R"({"name": "x", "min_samples": 1})",
        R"({"name": "x", "max_time_s": 0})", R"({"name": "x", "minutes": {"tpu": 1}})",
        R"({"name": "x", "tuned_on": 1})", R"({"name": "x", "draw": {}})",
        R"({"name": "x", "draw": {"count": 0}})"}) {
    EXPECT_NE(schema.violation(json::parse(text)), "") << text;
    EXPECT_THROW(parse_experiment(text, "f"), FileError) << text;
  }
  const json properties = json::parse(experiment_schema_json())["properties"]["axes"]["properties"];
  const std::string refusal =
      error_text<FileError>([] { parse_experiment(R"({"name": "x", "axes": {"unknown": 1}})", "f"); });
  for (const auto& [key, rule] : properties.items()) {
    EXPECT_NE(refusal.find(key), std::string::npos) << key;
  }
}

}  // namespace
}  // namespace moescope
