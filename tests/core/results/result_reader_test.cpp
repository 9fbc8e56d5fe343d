// Reading rows back: of this version and of earlier ones, and what is refused.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/result_rows.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

using nlohmann::json;
using test::JsonSchema;
using test::make_header;
using test::make_row;
using test::make_skipped_row;
using test::message_of;
using test::read_text;
using test::TemporaryDirectory;
using test::version_1_text;
using test::write_text;

TEST(ReadRows, ReadsSeveralRunsOneAfterAnother) {
  const TemporaryDirectory directory;
  std::string all;
  for (const char* id : {"first", "second"}) {
    ResultWriter(directory.path() / id, make_header(id)).write(make_row());
    all += read_text(directory.path() / id / "rows.jsonl");
  }
  write_text(directory.path() / "all.jsonl", all);
  const auto runs = read_rows(directory.path() / "all.jsonl");
  ASSERT_EQ(runs.size(), 2U);
  EXPECT_EQ(runs[1].header.run_id, "second");
  EXPECT_EQ(runs[1].rows.size(), 1U);
}

// Sums of what is allocated, which revisions before this one wrote as measured.
TEST(ReadRows, TakesMemoryThatWasAddedUpForAnalytic) {
  const TemporaryDirectory directory;
  {
    ResultWriter writer(directory.path() / "out", make_header());
    for (const char* metric : {"workspace_bytes", "peak_bytes", "hbm_read_bytes"}) {
      ResultRow row = make_row();
      row.metric = metric;
      row.unit = "bytes";
      row.source = Source::kMeasured;
      writer.write(row);
    }
  }
  const auto rows = read_rows(directory.path() / "out" / "rows.jsonl").at(0).rows;
  ASSERT_EQ(rows.size(), 3U);
  EXPECT_EQ(rows[0].source, Source::kAnalytic);
  EXPECT_EQ(rows[1].source, Source::kAnalytic);
  EXPECT_EQ(rows[2].source, Source::kMeasured);
}

TEST(ReadRows, NamesLineAndFieldOfWhatIsWrong) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  const std::string good = read_text(directory.path() / "rows.jsonl");
  const auto file = directory.path() / "bad.jsonl";
  const auto message_for = [&](const std::string& text) {
    write_text(file, text);
    const std::string message = message_of([&] { read_rows(file); });
    return message.substr(std::min(message.size(), file.string().size() + 2));
  };
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const auto at = text.rfind(from);
    EXPECT_NE(at, std::string::npos) << from;
    return text.replace(at, from.size(), to);
  };
  EXPECT_EQ(message_for(""), "holds no run");
  EXPECT_EQ(message_for(good.substr(0, good.size() - 20)).find("line 2: column "), 0U);
  EXPECT_EQ(message_for(good.substr(0, 40)), "line 1: is cut off: holds no run");
  EXPECT_EQ(message_for(replaced("\"unit\":\"s\"", "\"unit\":\"ms\"")),
            "line 2: unit = ms: contradicts metric time_s, which is in s");
  EXPECT_EQ(message_for(good + "[]\n"), "line 3: is not a JSON object");
  EXPECT_EQ(message_for(good + "{\"run_id\": \"\xff\"}\n").find("line 3: column "), 0U);
  EXPECT_NE(message_for(replaced("0.1", "NaN")).find("NaN is no number"), std::string::npos);
  EXPECT_EQ(message_for(replaced("0.1", "NaN")).find("line 2: column "), 0U);
  EXPECT_NE(message_for(replaced("0.1", "1e999")).find("1e999"), std::string::npos);
  EXPECT_EQ(message_for(replaced("\"L\":7", "\"L\":7,\"L\":7")), "line 2: key 'L' stands there twice");
  EXPECT_EQ(message_for(replaced("\"L\":7", "\"x\":" + std::string(100000, '['))).find("line 2: x[0]"), 0U);
  EXPECT_EQ(message_for(good.substr(good.find('\n') + 1)),
            "line 1: run_id: run has no header line before it");
  EXPECT_EQ(message_for(replaced("\"L\":7", "\"L\":\"7\"")),
            "line 2: L: \"7\" is not the number that belongs here");
  EXPECT_EQ(message_for(replaced("\"L\":7", "\"L\":7.5")),
            "line 2: L: 7.5 is not the number that belongs here");
  EXPECT_EQ(message_for(replaced("\"L\":7", "\"L\":18446744073709551615")),
            "line 2: L: 18446744073709551615 is not the number that belongs here");
  EXPECT_EQ(message_for(replaced("\"L\":7,", "")), "line 2: L: missing");
  EXPECT_EQ(message_for(replaced("\"measured\"", "\"dreamt\"")),
            "line 2: source: \"dreamt\" is not a known value");
  EXPECT_EQ(message_for(replaced("\"ok\"", "\"failed\"")),
            "line 2: value = 0.1: a row of time_s with status failed must not have one");
  EXPECT_EQ(message_for(replaced("\"schema_version\":6", "\"schema_version\":9")),
            "line 2: schema_version: 9 was written by another version; this one reads 1 to 5");
  EXPECT_NE(message_of([&] { read_rows(directory.path() / "absent"); }).find("absent: no such file"),
            std::string::npos);
  const auto folder = directory.path() / "folder";  // stands for the rows in it, of which it has none
  std::filesystem::create_directory(folder);
  EXPECT_NE(message_of([&] { read_rows(folder); }).find("not a regular file"), std::string::npos);
}

TEST(ReadRows, RefusesValuesThatCannotHaveBeenMeasured) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  std::string header;
  std::string row;
  std::getline(lines, header);
  std::getline(lines, row);
  const JsonSchema schema(json::parse(result_schema_json()));
  const auto file = directory.path() / "rows2.jsonl";
  const auto refused = [&](const std::string& patch) {
    json line = json::parse(row);
    line.update(json::parse(patch));  // not merge_patch, to which null means: delete
    write_text(file, header + "\n\n" + line.dump() + "\n");
    const bool by_schema = !schema.violation(line).empty();
    std::string message;
    try {
      read_rows(file);
    } catch (const FileError& error) {
      message = error.what();
      EXPECT_NE(message.find("line 3: "), std::string::npos) << message;
    }
    EXPECT_EQ(by_schema, !message.empty()) << patch << ": " << message;
    return by_schema;
  };
  for (const char* patch :
       {R"({"value": -0.1})", R"({"value": 0})", R"({"value": -1e-9, "source": "modelled"})",
        R"({"value": -5, "metric": "hbm_read_bytes", "unit": "bytes"})",
        R"({"value": -1, "metric": "useful_flop", "unit": "flop", "source": "analytic"})",
        R"({"spread": -0.5})", R"({"samples": -1})", R"({"L": -7})", R"({"K": -1})", R"({"B": 0})",
        R"({"tile_tokens": 0})", R"({"shared_size": -2})"}) {
    EXPECT_TRUE(refused(patch)) << patch;
  }
  for (const char* patch :
       {R"({"value": 0, "source": "modelled"})", R"({"B": null})", R"({"shared_size": 0})",
        R"({"value": 0, "metric": "hbm_read_bytes", "unit": "bytes"})", R"({"L": 0})"}) {
    EXPECT_FALSE(refused(patch)) << patch;
  }
}

TEST(ReadRows, PassesOverEmptyLines) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  std::string text = read_text(directory.path() / "rows.jsonl");
  text.insert(text.find('\n') + 1, "\n \t\r\n");
  write_text(directory.path() / "gaps.jsonl", "\n" + text + "\n\n");
  const auto runs = read_rows(directory.path() / "gaps.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0].rows.size(), 1U);
}

TEST(ReadRows, ReadsVersion1WithoutMakingUpWhatItDidNotRecord) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "old.jsonl", version_1_text());
  const auto runs = read_rows(directory.path() / "old.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  ASSERT_EQ(runs[0].rows.size(), 1U);
  const ResultRow& row = runs[0].rows[0];
  EXPECT_EQ(row.value, make_row().value);
  EXPECT_EQ(row.shared_size, std::nullopt);
  EXPECT_EQ(row.group_size, std::nullopt);
  EXPECT_EQ(row.tile_tokens, std::nullopt);
  EXPECT_EQ(row.activation, "none");
  EXPECT_EQ(row.repro, "");
  EXPECT_EQ(runs[0].header.experiment, "");
}

TEST(ReadRows, ALastLineCountsWithoutItsEnd) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  const auto file = directory.path() / "rows.jsonl";
  std::string text = read_text(file);
  ASSERT_EQ(text.back(), '\n');
  text.pop_back();
  write_text(file, text);
  EXPECT_EQ(read_rows(file).at(0).rows.size(), 1U);
  write_text(file, text.substr(0, text.find('\n')));  // the header alone
  EXPECT_EQ(read_rows(file).at(0).rows.size(), 0U);
}

}  // namespace
}  // namespace moescope
