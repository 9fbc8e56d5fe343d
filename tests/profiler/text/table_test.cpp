#include "profiler/text/table.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/histogram.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {
namespace {

Table make_table() {
  Table table({{"schedule", Align::kLeft}, {"time"}});
  table.add_row({"staircase", "1 ms"});
  table.add_rule();
  table.add_rule();
  table.add_row({"a|b", "12.3 ms"});
  return table;
}

TEST(Table, AlignsColumnsAsPlainText) {
  EXPECT_EQ(make_table().text(),
            "schedule      time\n"
            "---------  -------\n"
            "staircase     1 ms\n"
            "---------  -------\n"
            "a|b        12.3 ms\n");
}

TEST(Table, WritesMarkdown) {
  EXPECT_EQ(make_table().markdown(),
            "| schedule | time |\n"
            "| --- | ---: |\n"
            "| staircase | 1 ms |\n"
            "| a\\|b | 12.3 ms |\n");
}

TEST(Table, ShowsHostileCellsAndObeysNone) {
  Table table({{"name\x1b]0;owned\x07", Align::kLeft}});
  table.add_row({"\x1b[2Jx\nforged line"});
  table.add_row({"caf\xe9"});
  EXPECT_EQ(table.text(),
            "name\\x1b]0;owned\\x07\n"
            "---------------------\n"
            "\\x1b[2Jx\\nforged line\n"
            "caf\\xe9\n");
  Table markdown({{"name"}});
  markdown.add_row({"<script>alert(1)</script> `touch x` [a](b) &lt; a < b & c \\| |\n| forged |"});
  EXPECT_EQ(markdown.markdown(),
            "| name |\n| ---: |\n"
            "| \\<script>alert(1)\\</script> \\`touch x\\` \\[a](b) \\&lt; a < b & c \\\\\\| \\|\\\\n\\| "
            "forged \\| |\n");
}

TEST(Table, MarkdownShowsNamesWithoutEmphasis) {
  Table table({{"name", Align::kLeft}});
  table.add_row({"**b** ~~gone~~ _x_ token_centric l2_read_bytes 2*3"});
  EXPECT_EQ(table.markdown(),
            "| name |\n| --- |\n"
            "| \\*\\*b\\*\\* \\~\\~gone\\~\\~ \\_x\\_ token_centric l2_read_bytes 2\\*3 |\n");
}

TEST(Table, CountsCharactersNotBytes) {
  Table table({{"x"}});
  table.add_row({"µs"});
  table.add_row({"abc"});
  EXPECT_EQ(table.text(), "  x\n---\n µs\nabc\n");
  EXPECT_EQ(table.num_rows(), 2);
}

TEST(Table, RefusesARowOfAnotherLength) { EXPECT_THROW(make_table().add_row({"alone"}), InternalError); }

TEST(Table, ShowsItsHeadWithoutRows) {
  Table table({{"a"}, {"b"}});
  table.add_rule();
  EXPECT_EQ(table.text(), "a  b\n-  -\n");
  EXPECT_EQ(table.num_rows(), 0);
}

TEST(LoadHistogram, CountsExpertsInDoublingClasses) {
  const std::vector<std::int64_t> loads = {0, 0, 0, 0, 1, 2, 3, 8};
  EXPECT_EQ(load_histogram(loads, 8).text(),
            "pairs per expert  experts  of all pairs\n"
            "----------------  -------  ------------  --------\n"
            "               0        4         0.0 %  ########\n"
            "               1        1         7.1 %  ##\n"
            "             2-3        2        35.7 %  ####\n"
            "             4-7        0         0.0 %\n"
            "            8-15        1        57.1 %  ##\n");
}

TEST(LoadHistogram, ShowsExpertsWithoutAnyPairs) {
  const std::vector<std::int64_t> loads = {0, 0};
  EXPECT_EQ(load_histogram(loads, 4).text(),
            "pairs per expert  experts  of all pairs\n"
            "----------------  -------  ------------  ----\n"
            "               0        2         0.0 %  ####\n");
}

TEST(Format, KeepsThreeDigits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(1024 * 1024 - 1), "1.00 MiB") << "not 1024 KiB";
  EXPECT_EQ(format_bytes(12.5 * 1024 * 1024 * 1024), "12.5 GiB");
  EXPECT_EQ(format_seconds(0.00123), "1.23 ms");
  EXPECT_EQ(format_seconds(45.6), "45.6 s");
  EXPECT_EQ(format_seconds(0.4567), "457 ms");
  EXPECT_EQ(format_seconds(2e-10), "0.20 ns");
  EXPECT_EQ(format_engineering(1.2e10, "flop"), "12.0 Gflop");
  EXPECT_EQ(format_engineering(999.9, "flop"), "1.00 kflop");
  EXPECT_EQ(format_engineering(7, ""), "7 ");
  EXPECT_EQ(format_percent(0.0123), "1.2 %");
}

TEST(Table, ShowsNamesAndDoesNotObeyThem) {
  Table table({{"workload", Align::kLeft}});
  table.add_row({"a\x1b[2J\nb"});
  EXPECT_EQ(table.text(), "workload\n-----------\na\\x1b[2J\\nb\n");
}

/// Two workloads of two schedules, with a number that people read elsewhere.
Table wide_table() {
  Table table({{"workload", Align::kLeft, Need::kAlways, true},
               {"schedule", Align::kLeft, Need::kAlways},
               {"time", Align::kRight, Need::kAlways},
               {"bytes", Align::kRight, Need::kExtra},
               {"spread"},
               {"reason", Align::kLeft, Need::kBelow},
               {"seed", Align::kRight, Need::kPrograms}});
  table.add_row({"zipf:1", "staircase", TableCell("1.00 ms", 1e-3, Mark::kFastest), bytes_cell(2048),
                 percent_cell(0.05), "-", count_cell(7)});
  table.add_row({"zipf:1", "token_centric", TableCell("1.01 ms", 1.01e-3, Mark::kWithinSpread), "-",
                 percent_cell(0.5), "a long reason that needs a line or even two", count_cell(7)});
  table.add_rule();
  table.add_row({"zipf:1", "staircase", seconds_cell(2e-3), "-", "-", "-", "-"});
  return table;
}

std::size_t widest_line(const std::string& text) {
  std::istringstream lines(text);
  std::size_t widest = 0;
  for (std::string line; std::getline(lines, line);) {
    widest = std::max(widest, line.size());
  }
  return widest;
}

TEST(Table, PutsBelowAndLeavesOutWhatDoesNotFit) {
  const Table table = wide_table();
  EXPECT_EQ(table.text(60),
            "workload  schedule          time     bytes  spread\n"
            "--------  -------------  -------  --------  ------\n"
            "zipf:1    staircase      1.00 ms  2.00 KiB   5.0 %\n"
            "          token_centric  1.01 ms         -  50.0 %\n"
            "    reason: a long reason that needs a line or even two\n"
            "--------  -------------  -------  --------  ------\n"
            "zipf:1    staircase      2.00 ms         -       -\n");
  const std::string narrow = table.text(45);
  EXPECT_EQ(narrow.substr(0, narrow.find('\n')), "workload  schedule          time  spread") << narrow;
  EXPECT_TRUE(narrow.ends_with("1 more column: --wide or --format csv\n")) << narrow;
  EXPECT_LE(widest_line(narrow), 45U) << narrow;
  EXPECT_TRUE(table.text(34).ends_with("2 more columns: --wide or --format csv\n")) << table.text(34);
  EXPECT_NE(table.text(10).find("token_centric"), std::string::npos) << "what a row is of stays";
  EXPECT_EQ(table.text(), table.text(200)) << "0 is no limit";
}

TEST(Table, ColoursMarkedCellsAlone) {
  const std::string plain = wide_table().text(60);
  std::string coloured = wide_table().text(60, true);
  EXPECT_EQ(plain.find('\x1b'), std::string::npos);
  EXPECT_NE(coloured.find("\x1b[1;32m1.00 ms\x1b[0m"), std::string::npos) << coloured;
  for (const std::string_view code : colour_codes()) {
    for (std::size_t at = 0; (at = coloured.find(code)) != std::string::npos;) {
      coloured.erase(at, code.size());
    }
  }
  EXPECT_EQ(coloured, plain) << "widths do not count colours";
}

TEST(Table, WritesCsvWithNumbersInBaseUnits) {
  EXPECT_EQ(wide_table().csv(),
            "workload,schedule,time,bytes,spread,reason,seed,mark\n"
            "zipf:1,staircase,0.001,2048,0.05,,7,fastest\n"
            "zipf:1,token_centric,0.00101,,0.5,a long reason that needs a line or even two,7,within spread\n"
            "zipf:1,staircase,0.002,,,,,\n");
  Table quotes({{"a,b"}, {"c"}});
  quotes.add_row({"say \"x\"", "1, 2"});
  EXPECT_EQ(quotes.csv(), "\"a,b\",c\n\"say \"\"x\"\"\",\"1, 2\"\n");
  Table formulas({{"=1+1"}, {"c"}});
  formulas.add_row({"=cmd()|x", "@SUM(a,b)"});
  EXPECT_EQ(formulas.csv(), "'=1+1,c\n'=cmd()|x,\"'@SUM(a,b)\"\n") << "as in rows.csv";
}

TEST(Table, WritesJson) {
  const auto json = nlohmann::json::parse(wide_table().json());
  EXPECT_EQ(json["columns"].size(), 7U);
  EXPECT_EQ(json["rows"][0]["time"], 1e-3);
  EXPECT_EQ(json["rows"][0]["mark"], "fastest");
  EXPECT_TRUE(json["rows"][1]["bytes"].is_null());
  EXPECT_FALSE(json["rows"][2].contains("mark"));
}

TEST(Table, HasNoTwoColumnsOfOneName) {
  EXPECT_THROW(Table({{"median"}, {"worst"}, {"median"}}), InternalError);
}

std::string shown(TableFormat format, std::string* sentences = nullptr) {
  std::ostringstream out;
  std::ostringstream err;
  {
    TableOutput tables(out, err, {.format = format});
    tables.text() << "a sentence\n\n";
    tables.show("first", make_table());
    tables.show("second", make_table());
  }
  if (sentences != nullptr) {
    *sentences = err.str();
  }
  return out.str();
}

TEST(TableOutput, KeepsSentencesOutOfWhatProgramsRead) {
  std::string err;
  EXPECT_TRUE(shown(TableFormat::kTable, &err).starts_with("a sentence\n\nschedule"));
  EXPECT_EQ(err, "");
  EXPECT_TRUE(shown(TableFormat::kMarkdown).starts_with("a sentence\n\n| schedule"));
  EXPECT_EQ(shown(TableFormat::kCsv, &err),
            "schedule,time\nstaircase,1 ms\na|b,12.3 ms\n\nschedule,time\nstaircase,1 ms\na|b,12.3 ms\n");
  EXPECT_EQ(err, "a sentence\n\n");
  const auto json = nlohmann::json::parse(shown(TableFormat::kJson, &err));
  EXPECT_EQ(json["tables"].size(), 2U);
  EXPECT_EQ(json["tables"][1]["name"], "second");
  EXPECT_EQ(json["tables"][1]["rows"][1]["schedule"], "a|b");
  EXPECT_EQ(err, "a sentence\n\n");
}

TEST(TableOutput, WritesNoHalfDocumentWhenAnErrorIsOnItsWay) {
  std::ostringstream out;
  try {
    TableOutput tables(out, out, {.format = TableFormat::kJson});
    tables.show("first", make_table());
    throw InternalError("x");
  } catch (const InternalError&) {
  }
  EXPECT_EQ(out.str(), "");
}

TEST(TableStyle, FollowsTheTerminalAndWhatPeopleSetForIt) {
  EXPECT_EQ(people_style(97, nullptr, nullptr, "xterm").width, 97U);
  EXPECT_TRUE(people_style(97, nullptr, nullptr, "xterm").colour);
  EXPECT_FALSE(people_style(97, nullptr, "1", "xterm").colour);
  EXPECT_TRUE(people_style(97, nullptr, "", "xterm").colour) << "NO_COLOR counts when it is not empty";
  EXPECT_FALSE(people_style(97, nullptr, nullptr, "dumb").colour);
  EXPECT_FALSE(people_style(97, nullptr, nullptr, nullptr).colour);
  EXPECT_EQ(people_style(97, "60", nullptr, "xterm").width, 60U);
  EXPECT_EQ(people_style(97, "wide", nullptr, "xterm").width, 97U);
  EXPECT_EQ(people_style(0, nullptr, nullptr, "xterm").width, 120U) << "a file";
  EXPECT_FALSE(people_style(0, nullptr, nullptr, "xterm").colour);
  EXPECT_THROW(parse_table_format("xml"), InvalidArgument);
}

TEST(Table, FitsWhereNothingMayBeLeftOut) {
  Table table({{"layer", Align::kLeft, Need::kAlways},
               {"time", Align::kRight, Need::kAlways},
               {"what", Align::kLeft, Need::kAlways}});
  table.add_row({"L1024 d1024 zipf:1", "12 us", "a"});
  EXPECT_EQ(table.text(20),
            "layer\n     time  what\n------------------\n    -----  ----\n"
            "L1024 d1024 zipf:1\n    12 us  a\n");
  EXPECT_EQ(table.text(14),
            "layer\n     time\n--------------\n    -----\n"
            "L1024 d1024\n  zipf:1\n    12 us\n    what: a\n");
}

}  // namespace
}  // namespace moescope
