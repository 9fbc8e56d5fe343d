#include "core/results/result.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
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

TEST(ResultRow, RefusesWhatWouldMislead) {
  const auto message = [](const std::function<void(ResultRow&)>& spoil) {
    ResultRow row = make_row();
    spoil(row);
    return message_of([&] { row.validate(); });
  };
  EXPECT_EQ(message([](ResultRow&) {}), "no error");
  EXPECT_EQ(message([](ResultRow& row) { row.unit = "ms"; }),
            "unit = ms: contradicts metric time_s, which is in s");
  EXPECT_EQ(message([](ResultRow& row) { row.metric = "hbm_read_bytes"; }),
            "unit = s: contradicts metric hbm_read_bytes, which is in bytes");
  EXPECT_EQ(message([](ResultRow& row) {
              row.metric = "hbm_copy_bytes_per_s";
              row.unit = "bytes_per_s";
            }),
            "no error");
  EXPECT_EQ(message([](ResultRow& row) {
              row.metric = "sm__warps_active.avg";  // the vendor's: its name says nothing
              row.unit = "warps";
            }),
            "no error");
  EXPECT_EQ(message([](ResultRow& row) { row.value.reset(); }),
            "value = null: a row of time_s with status ok needs a finite one");
  EXPECT_EQ(message([](ResultRow& row) { row.value = std::numeric_limits<double>::quiet_NaN(); }),
            "value = nan: a row of time_s with status ok needs a finite one");
  EXPECT_EQ(message([](ResultRow& row) { row.status = Status::kFailed; }),
            "value = 0.1: a row of time_s with status failed must not have one");
  EXPECT_EQ(message([](ResultRow& row) {
              row.status = Status::kUnavailable;
              row.value.reset();
            }),
            "reason = \"\": status unavailable needs one");
  EXPECT_EQ(message([](ResultRow& row) { row.samples = 0; }),
            "samples = 0: a row with status ok rests on at least one");
  EXPECT_EQ(message([](ResultRow& row) { row.spread = -1; }), "spread = -1: must be a finite fraction >= 0");
  using Text = std::string ResultRow::*;
  for (const Text field : std::initializer_list<Text>{
           &ResultRow::system, &ResultRow::schedule, &ResultRow::stage, &ResultRow::backend,
           &ResultRow::dtype, &ResultRow::activation, &ResultRow::gates, &ResultRow::workload,
           &ResultRow::l2_state, &ResultRow::metric, &ResultRow::unit}) {
    EXPECT_NE(message([&](ResultRow& row) { (row.*field).clear(); }).find("a row needs it"),
              std::string::npos);
  }
}

TEST(ResultWriter, WritesWhatTheReaderGivesBack) {
  const TemporaryDirectory directory;
  const RunHeader header = make_header();
  {
    ResultWriter writer(directory.path() / "deep" / "er", header);
    writer.write(make_row());
    writer.write(make_skipped_row());
  }
  const auto runs = read_rows(directory.path() / "deep" / "er" / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  EXPECT_EQ(runs[0].header.run_id, "run");
  EXPECT_EQ(runs[0].header.command_line, "moescope run --workload 'trace:my file.npy'");
  EXPECT_EQ(runs[0].header.libraries, header.libraries);
  EXPECT_EQ(runs[0].header.machine, header.machine);
  EXPECT_EQ(runs[0].header.git_dirty, header.git_dirty);
  EXPECT_EQ(runs[0].header.device, header.device);
  ASSERT_EQ(runs[0].rows.size(), 2U);
  const ResultRow& row = runs[0].rows[0];
  EXPECT_EQ(row.workload, make_row().workload);
  EXPECT_EQ(row.seed, make_row().seed);
  EXPECT_EQ(row.value, make_row().value);
  EXPECT_EQ(row.spread, make_row().spread);
  EXPECT_EQ(row.grid_rows, 48);
  EXPECT_EQ(row.grid_cols, 16);
  EXPECT_EQ(row.dtype, "bf16");
  EXPECT_EQ(row.shared_size, 0);
  EXPECT_EQ(row.group_size, 64);
  EXPECT_EQ(row.tile_tokens, 96);
  EXPECT_EQ(row.activation, "silu");
  EXPECT_EQ(row.gates, "softmax");
  EXPECT_EQ(row.point, "");
  EXPECT_EQ(row.repro, header.command_line) << "of a row that says nothing else";
  EXPECT_EQ(row.status, Status::kOk);
  EXPECT_EQ(runs[0].rows[1].value, std::nullopt);
  EXPECT_EQ(runs[0].rows[1].reason, make_skipped_row().reason);
}

TEST(ResultWriter, WritesRowsThatTheSchemaAccepts) {
  const TemporaryDirectory directory;
  {
    ResultWriter writer(directory.path(), make_header());
    writer.write(make_row());
    writer.write(make_skipped_row());
  }
  const JsonSchema schema(json::parse(result_schema_json()));
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    EXPECT_EQ(schema.violation(json::parse(line)), "");
  }
  EXPECT_EQ(count, 3);
  EXPECT_EQ(schema.violation(json::parse(read_text(directory.path() / "run.json"))), "");
}

TEST(ResultSchema, RefusesRowsThatAreNotOurs) {
  const TemporaryDirectory directory;
  {
    ResultWriter writer(directory.path(), make_header());
    writer.write(make_row());
  }
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  std::string line;
  std::getline(lines, line);
  std::getline(lines, line);
  const json good = json::parse(line);
  const JsonSchema schema(json::parse(result_schema_json()));
  EXPECT_EQ(schema.violation(good), "");
  for (const auto& [key, value] : good.items()) {
    json bad = good;
    bad.erase(key);
    EXPECT_NE(schema.violation(bad), "") << "without " << key;
    bad = good;
    bad[key] = json::array();
    EXPECT_NE(schema.violation(bad), "") << "with a list for " << key;
  }
  for (const auto& patch :
       {R"({"status": "fine"})", R"({"source": "guessed"})", R"({"value": null})", R"({"extra": 1})",
        R"({"schema_version": 7})", R"({"status": "failed", "value": null})", R"({"samples": 0})"}) {
    json bad = good;
    bad.merge_patch(json::parse(patch));
    if (std::string_view(patch).find("null") != std::string_view::npos) {
      bad["value"] = nullptr;  // merge_patch deletes what is null
    }
    EXPECT_NE(schema.violation(bad), "") << patch;
  }
}

TEST(ResultSchema, ListsEveryStageAndEveryEnumerator) {
  const json defs = json::parse(result_schema_json())["$defs"];
  const json row = defs["row"]["properties"];
  json stages = json::array();
  for (const Stage stage : kStages) {
    stages.push_back(std::string(to_string(stage)));
  }
  stages.push_back(std::string(kDeviceStage));
  EXPECT_EQ(row["stage"]["enum"], stages);
  EXPECT_EQ(row["source"]["enum"], json::array({to_string(Source::kAnalytic), to_string(Source::kModelled),
                                                to_string(Source::kMeasured)}));
  EXPECT_EQ(row["status"]["enum"],
            json::array({to_string(Status::kOk), to_string(Status::kSkipped), to_string(Status::kUnavailable),
                         to_string(Status::kFailed)}));
  EXPECT_EQ(row["schema_version"]["enum"].back(), kResultSchemaVersion);
  EXPECT_EQ(defs["point_line"]["properties"]["schema_version"]["enum"].back(), kResultSchemaVersion);
  EXPECT_EQ(defs["point_line"]["properties"]["point"]["properties"]["status"]["enum"], row["status"]["enum"]);
}

TEST(ResultSchema, IsThePublishedFile) {
  EXPECT_EQ(result_schema_json(), read_text(test::source_path("core/results/result.schema.json")));
}

TEST(ResultWriter, WritesCsvWithTheSchemasColumns) {
  const TemporaryDirectory directory;
  {
    ResultWriter writer(directory.path(), make_header());
    writer.write(make_row());
    writer.write(make_skipped_row());
  }
  std::string columns;
  const auto schema = nlohmann::ordered_json::parse(result_schema_json());
  for (const auto& [key, rule] : schema["$defs"]["row"]["properties"].items()) {
    columns += (columns.empty() ? "" : ",") + key;
  }
  const std::string csv = read_text(directory.path() / "rows.csv");
  EXPECT_EQ(csv.substr(0, csv.find('\n')), columns);
  EXPECT_NE(
      csv.find(
          "6,run,omnimoe,forward,none,none,none,staircase,cpu,7,96,48,16,5,0,,,,64,96,bf16,silu,softmax,\"trace:a,b "
          "\"\"c\"\".npy\",18446744073709551615,cold,1,,,none,none,experts,measured,time_s,0.1,s,11,"
          "0.3333333333333333,ok,,,moescope run --workload 'trace:my file.npy'\n"),
      std::string::npos)
      << csv;
  EXPECT_NE(csv.find("measured,time_s,,s,0,,skipped,\"no \"\"such\"\" schedule,\nhere\",,moescope run"),
            std::string::npos)
      << csv;
}

TEST(ResultWriter, MarksCsvTextThatASpreadsheetWouldCompute) {
  const TemporaryDirectory directory;
  const std::vector<std::string> names = {"=cmd()", "+1", "-1", "@SUM(1)", "\tx", "'quoted", "=a,b"};
  {
    ResultWriter writer(directory.path(), make_header());
    for (const std::string& name : names) {
      ResultRow row = make_row();
      row.workload = name;
      row.value = 0.5;
      writer.write(row);
    }
  }
  const std::string csv = read_text(directory.path() / "rows.csv");
  for (const std::string& name : names) {
    const std::string cell = name.find(',') == std::string::npos ? "'" + name : "\"'" + name + '"';
    EXPECT_NE(csv.find("softmax," + cell + ",18446744073709551615"), std::string::npos) << name << '\n'
                                                                                        << csv;
  }
  EXPECT_NE(csv.find("time_s,0.5,"), std::string::npos) << "a number is a number";
  EXPECT_EQ(read_rows(directory.path() / "rows.jsonl").at(0).rows.at(0).workload, "=cmd()")
      << "JSON needs no mark";
}

TEST(ResultWriter, KeepsTheResultsOfAnEarlierRun) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  const std::string before = read_text(directory.path() / "rows.jsonl");
  EXPECT_EQ(message_of([&] { ResultWriter(directory.path(), make_header("other")); }),
            (directory.path() / "run.json").string() + ": exists already; name another output directory");
  EXPECT_EQ(read_text(directory.path() / "rows.jsonl"), before);
}

TEST(ResultWriter, NamesADirectoryThatCannotBe) {
  const TemporaryDirectory directory;
  write_text(directory.path() / "file", "");
  const auto message = message_of([&] { ResultWriter(directory.path() / "file" / "sub", make_header()); });
  EXPECT_NE(message.find("file/sub: cannot be created"), std::string::npos) << message;
}

TEST(ResultWriter, RefusesABadRowBeforeWritingIt) {
  const TemporaryDirectory directory;
  ResultWriter writer(directory.path(), make_header());
  ResultRow row = make_row();
  row.unit.clear();
  EXPECT_THROW(writer.write(row), InvalidArgument);
  EXPECT_TRUE(read_rows(directory.path() / "rows.jsonl")[0].rows.empty());
}

TEST(ResultSchema, AcceptsVersion1AndDemandsTheNewFieldsOfVersion2) {
  const JsonSchema schema(json::parse(result_schema_json()));
  std::istringstream lines(version_1_text());
  for (std::string line; std::getline(lines, line);) {
    json value = json::parse(line);
    EXPECT_EQ(schema.violation(value), "");
    value["schema_version"] = 2;
    EXPECT_NE(schema.violation(value), "") << line;
  }
}

TEST(ResultSchema, TakesTileTokensFromVersion3On) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), make_header()).write(make_row()); }
  const JsonSchema schema(json::parse(result_schema_json()));
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  std::string text;
  for (std::string line; std::getline(lines, line);) {
    json value = json::parse(line);
    EXPECT_EQ(schema.violation(value), "");
    if (value.erase("tile_tokens") > 0) {
      EXPECT_NE(schema.violation(value), "");
    }
    value["schema_version"] = 2;
    EXPECT_EQ(schema.violation(value), "");
    text += value.dump() + '\n';
  }
  write_text(directory.path() / "old.jsonl", text);
  const auto runs = read_rows(directory.path() / "old.jsonl");
  EXPECT_EQ(runs.at(0).rows.at(0).group_size, 64);
  EXPECT_EQ(runs.at(0).rows.at(0).tile_tokens, std::nullopt) << "which version 2 did not record";
}

TEST(RunHeader, SaysWhatTheRunWasBuiltFrom) {
  const RunHeader header = make_header();
  EXPECT_FALSE(header.git_revision.empty());
  EXPECT_TRUE(header.device.starts_with("unavailable: "));
  EXPECT_TRUE(header.driver.starts_with("unavailable: "));
  EXPECT_TRUE(header.libraries.contains("fmt"));
  EXPECT_TRUE(header.libraries.contains("nlohmann_json"));
  EXPECT_GE(header.machine.at("cpu_threads"), 1);
  EXPECT_EQ(header.started_utc.size(), std::string("2026-01-01T00:00:00Z").size());
}

}  // namespace
}  // namespace moescope
