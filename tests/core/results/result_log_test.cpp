// A sweep's rows as a log: what an interruption leaves behind, at whatever byte, and how it goes on from
// there.
#include <gtest/gtest.h>
#include <zlib.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "core/base/error.hpp"
#include "core/results/result.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/json_schema.hpp"
#include "tests/support/temporary_directory.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;
using test::error_text;
using test::read_text;
using test::TemporaryDirectory;
using test::write_text;

ResultRow log_row(const std::string& workload, double value) {
  ResultRow row;
  row.schedule = "staircase";
  row.stage = "layer";
  row.backend = "cpu";
  row.set_shape(LayerShape{.num_tokens = 7, .hidden_size = 96, .grid_rows = 48, .grid_cols = 16, .top_k = 5});
  row.workload = workload;
  row.l2_state = "cold";
  row.metric = "time_s";
  row.value = value;
  row.unit = "s";
  row.repro = "moescope compare --workload " + workload;
  return row;
}

RunHeader log_header(const std::string& experiment = R"({"name":"test"})") {
  const char* argv[] = {"moescope", "sweep", "test.json"};
  RunHeader header = make_run_header(3, argv);
  header.run_id = "run";
  header.device = "a machine";
  header.experiment = experiment;
  return header;
}

RecordedPoint make_point(const std::string& id, Status status = Status::kOk) {
  RecordedPoint point;
  point.id = id;
  point.status = status;
  point.elapsed_s = 0.25;
  return point;
}

/// Writes the points that are missing, as a sweep does.
void finish(const fs::path& directory) {
  ResultWriter writer(directory, log_header(), ExistingRun::kContinue);
  for (const char* id : {"p0", "p1", "p2"}) {
    if (!writer.points().contains(id)) {
      writer.write_point(make_point(id), {log_row(id, 1), log_row(id, 1.5)});
    }
  }
}

/// workload and value of every row that counts.
std::string contents(const fs::path& file) {
  std::string text;
  for (const RecordedRun& run : read_rows(file)) {
    for (const ResultRow& row : run.rows) {
      EXPECT_EQ(row.point, row.workload);
      text += row.workload + "=" + std::to_string(*row.value) + " ";
    }
  }
  return text;
}

TEST(ResultLog, GivesBackPointsWithTheirRows) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const auto runs = read_rows(directory.path() / "rows.jsonl");
  ASSERT_EQ(runs.size(), 1U);
  ASSERT_EQ(runs[0].points.size(), 3U);
  EXPECT_EQ(runs[0].points[1].id, "p1");
  EXPECT_EQ(runs[0].points[1].rows, 2);
  EXPECT_EQ(runs[0].points[1].elapsed_s, 0.25);
  EXPECT_EQ(runs[0].rows.size(), 6U);
  EXPECT_EQ(runs[0].header.experiment, R"({"name":"test"})");
  EXPECT_EQ(runs[0].rows[0].repro, "moescope compare --workload p0");
}

TEST(ResultLog, IsReadPackedAndNeverInPart) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const std::string text = read_text(directory.path() / "rows.jsonl");
  const fs::path packed = directory.path() / "rows.jsonl.gz";
  const gzFile stream = gzopen(packed.c_str(), "wb");
  ASSERT_EQ(gzwrite(stream, text.data(), static_cast<unsigned>(text.size())), std::ssize(text));
  ASSERT_EQ(gzclose(stream), Z_OK);
  EXPECT_EQ(read_rows(packed).front().rows.size(), 6U);

  fs::resize_file(packed, fs::file_size(packed) - 9);  // checksum, length and a byte of what they are of
  EXPECT_NE(error_text<FileError>([&] { read_rows(packed); }).find("rows.jsonl.gz"), std::string::npos);
  fs::remove(packed);
  EXPECT_NE(error_text<FileError>([&] { read_rows(packed); }).find("no such file"), std::string::npos);
}

TEST(ResultLog, WritesLinesThatTheSchemaAccepts) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const test::JsonSchema schema(nlohmann::json::parse(result_schema_json()));
  std::istringstream lines(read_text(directory.path() / "rows.jsonl"));
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    EXPECT_EQ(schema.violation(nlohmann::json::parse(line)), "");
  }
  EXPECT_EQ(count, 1 + 3 * 3);
  EXPECT_EQ(schema.violation(nlohmann::json::parse(read_text(directory.path() / "run.json"))), "");
}

TEST(ResultLog, GoesOnFromAnInterruptionAtAnyByte) {
  const TemporaryDirectory whole;
  finish(whole.path());
  const std::string text = read_text(whole.path() / "rows.jsonl");
  const std::string expected = contents(whole.path() / "rows.jsonl");
  for (std::size_t cut = 0; cut < text.size(); ++cut) {
    // All cuts inside a line are alike: every byte around the ends of lines, and one in 17 between.
    const bool near_end = text.substr(cut < 3 ? 0 : cut - 3, 6).find('\n') != std::string::npos;
    if (!near_end && cut % 17 != 0) {
      continue;
    }
    const TemporaryDirectory directory;
    const fs::path file = directory.path() / "rows.jsonl";
    write_text(file, text.substr(0, cut));
    std::istringstream partial(text.substr(0, cut));
    std::size_t counted = 0;
    for (const RecordedRun& run : parse_rows(partial, "partial").runs) {
      EXPECT_EQ(run.rows.size(), 2 * run.points.size())
          << "a point counts whole or not at all, cut at " << cut;
      counted += run.points.size();
    }
    finish(directory.path());
    ASSERT_EQ(contents(file), expected) << "cut at " << cut;
    const auto runs = read_rows(file);
    ASSERT_EQ(runs.front().points.size() + (runs.size() > 1 ? runs[1].points.size() : 0), 3U);
    if (counted > 0) {
      EXPECT_EQ(runs.front().points.size(), counted) << "nothing is done twice, cut at " << cut;
    }
    const std::string csv = read_text(directory.path() / "rows.csv");
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 7) << "cut at " << cut;
  }
}

TEST(ResultLog, ChangesNothingWhenThereIsNothingLeftToDo) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const std::string rows = read_text(directory.path() / "rows.jsonl");
  const std::string csv = read_text(directory.path() / "rows.csv");
  finish(directory.path());
  EXPECT_EQ(read_text(directory.path() / "rows.jsonl"), rows);
  EXPECT_EQ(read_text(directory.path() / "rows.csv"), csv);
}

TEST(ResultLog, NamesRunsOfOneSecondApart) {
  const TemporaryDirectory directory;
  { ResultWriter(directory.path(), log_header(), ExistingRun::kContinue).write_point(make_point("p0"), {}); }
  { ResultWriter(directory.path(), log_header(), ExistingRun::kContinue).write_point(make_point("p1"), {}); }
  { ResultWriter(directory.path(), log_header(), ExistingRun::kContinue).write_point(make_point("p2"), {}); }
  const auto runs = read_rows(directory.path() / "rows.jsonl");
  ASSERT_EQ(runs.size(), 3U);
  EXPECT_EQ(runs[0].header.run_id, "run");
  EXPECT_EQ(runs[1].header.run_id, "run-2");
  EXPECT_EQ(runs[2].header.run_id, "run-3");
}

TEST(ResultLog, RefusesToGoOnWithSomethingElse) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const std::string before = read_text(directory.path() / "rows.jsonl");
  const std::string file = (directory.path() / "rows.jsonl").string();
  const auto go_on = [&](const RunHeader& header) {
    return error_text<FileError>([&] { ResultWriter(directory.path(), header, ExistingRun::kContinue); });
  };
  EXPECT_EQ(go_on(log_header("{}")), file + ": experiment: is another one; name another output directory");
  RunHeader elsewhere = log_header();
  elsewhere.device = "another machine";
  EXPECT_EQ(go_on(elsewhere),
            file + ": device: a machine recorded it, this is another machine; name another output directory");
  EXPECT_EQ(read_text(directory.path() / "rows.jsonl"), before);
}

TEST(ResultLog, LetsOneProcessWrite) {
  const TemporaryDirectory directory;
  const ResultWriter writer(directory.path(), log_header(), ExistingRun::kContinue);
  EXPECT_EQ(
      error_text<FileError>([&] { ResultWriter(directory.path(), log_header(), ExistingRun::kContinue); }),
      (directory.path() / "rows.jsonl").string() + ": another process is writing it");
}

TEST(ResultLog, RefusesABadPointBeforeWritingAnyOfIt) {
  const TemporaryDirectory directory;
  ResultWriter writer(directory.path(), log_header(), ExistingRun::kContinue);
  ResultRow bad = log_row("p0", 1);
  bad.unit.clear();
  EXPECT_THROW(writer.write_point(make_point("p0"), {log_row("p0", 1), bad}), InvalidArgument);
  EXPECT_THROW(writer.write_point(make_point(""), {}), InvalidArgument);
  EXPECT_THROW(writer.write_point(make_point("p0", Status::kFailed), {}), InvalidArgument);
  EXPECT_EQ(read_text(directory.path() / "rows.jsonl"), "");
}

TEST(ResultLog, NamesLineAndFieldOfPointsThatCannotBe) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const std::string good = read_text(directory.path() / "rows.jsonl");
  const auto message_for = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const auto at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    std::istringstream stream(text.replace(at, from.size(), to));
    return error_text<FileError>([&] { parse_rows(stream, "log"); });
  };
  EXPECT_EQ(message_for("\"rows\":2", "\"rows\":3"),
            "log: line 4: point: p0 ends with 3 rows, 2 of p0 stand before it");
  EXPECT_EQ(message_for("\"id\":\"p0\"", "\"id\":\"p9\""),
            "log: line 4: point: p9 ends with 2 rows, 2 of p0 stand before it");
  EXPECT_EQ(message_for("\"point\":\"p0\"", "\"point\":\"p9\""),
            "log: line 3: point: \"p0\" begins before the end of p9");
  EXPECT_EQ(message_for("\"elapsed_s\":0.25", "\"elapsed_s\":-1"),
            "log: line 4: elapsed_s = -1: must be a finite time >= 0");
  EXPECT_EQ(message_for("\"rows\":2,", ""), "log: line 4: rows: missing");
}

TEST(ResultLog, MakesAMissingRunAgainAndNamesMissingRows) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const std::string run = read_text(directory.path() / "run.json");
  const std::string rows = read_text(directory.path() / "rows.jsonl");
  fs::remove(directory.path() / "run.json");
  finish(directory.path());
  EXPECT_EQ(read_text(directory.path() / "run.json"), run);
  EXPECT_EQ(read_text(directory.path() / "rows.jsonl"), rows);
  fs::remove(directory.path() / "rows.jsonl");
  EXPECT_EQ(error_text<FileError>([&] { finish(directory.path()); }),
            (directory.path() / "rows.jsonl").string() + ": is missing beside " +
                (directory.path() / "run.json").string() +
                ": put it back, or name another output directory, which starts anew");
  EXPECT_EQ(read_text(directory.path() / "run.json"), run);
}

TEST(ResultLog, ALastPointWithoutItsEndIsReadAndMeasuredAgain) {
  const TemporaryDirectory directory;
  finish(directory.path());
  const fs::path file = directory.path() / "rows.jsonl";
  const std::string whole = contents(file);
  std::string text = read_text(file);
  text.pop_back();
  write_text(file, text);
  EXPECT_EQ(contents(file), whole);
  finish(directory.path());
  EXPECT_EQ(contents(file), whole);
}

}  // namespace
}  // namespace moescope
