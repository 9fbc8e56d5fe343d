#include "profiler/text/table.hpp"

#include <gtest/gtest.h>

#include <vector>

#include "core/base/error.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/histogram.hpp"

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
  EXPECT_EQ(load_histogram(loads, 8),
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
  EXPECT_EQ(load_histogram(loads, 4),
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

}  // namespace
}  // namespace moescope
