#include "profiler/text/wrap.hpp"

#include <gtest/gtest.h>

#include <sstream>

#include "profiler/text/fitted_output.hpp"

namespace moescope {
namespace {

TEST(Wrap, BreaksAtSpaces) {
  using Lines = std::vector<std::string>;
  EXPECT_EQ(wrapped("", 10), Lines{""});
  EXPECT_EQ(wrapped("one two", 7), Lines{"one two"});
  EXPECT_EQ(wrapped("one two", 6), (Lines{"one", "two"}));
  EXPECT_EQ(wrapped("a-word-that-is-long and more", 8, " "), (Lines{"a-word-that-is-long", " and", " more"}));
  EXPECT_EQ(wrapped("  kept  apart ", 20), Lines{"  kept  apart"});
  EXPECT_EQ(wrapped("\xc3\xa9\xc3\xa9 \xc3\xa9\xc3\xa9", 5), Lines{"\xc3\xa9\xc3\xa9 \xc3\xa9\xc3\xa9"})
      << "in characters";
}

TEST(Wrap, FitsEveryLineByItselfAndLeavesThoseThatFit) {
  EXPECT_EQ(fitted("one two three\nfour\n", 8), "one two\n  three\nfour\n");
  EXPECT_EQ(fitted("one two three\n", 0), "one two three\n") << "0: any";
  EXPECT_EQ(fitted("no end of line", 9), "no end of\n  line");
  EXPECT_EQ(fitted("\r[1/4] a step\r[2/4] a step", 13), "\r[1/4] a step\r[2/4] a step") << "rewritten";
  EXPECT_EQ(fitted("name   what it means", 16), "name   what it\n       means") << "below the meaning";
}

TEST(Wrap, BreaksCommandsAsAShellTakesThem) {
  EXPECT_EQ(fitted("  moescope run -L 8 --workload 'trace:a b#layer=all'\n", 30),
            "  moescope run -L 8 \\\n      --workload \\\n      'trace:a b#layer=all'\n");
  EXPECT_TRUE(is_command("   moescope run"));
  EXPECT_FALSE(is_command("moescope: what is wrong"));
}

TEST(FittedOutput, FitsSentencesAndNothingVerbatim) {
  std::ostringstream stream;
  stream.setf(std::ios_base::unitbuf);
  {
    const FittedOutput fits(stream, 10);
    stream << "one "
           << "two three\n";
    EXPECT_EQ(stream.flags() & std::ios_base::unitbuf, 0) << "pieces of a line wait for its end";
    {
      const Verbatim whole(stream);
      stream << "a table wider than that\n";
    }
    stream << "no end";
  }
  EXPECT_EQ(stream.str(), "one two\n  three\na table wider than that\nno end");
  EXPECT_NE(stream.flags() & std::ios_base::unitbuf, 0);
}

}  // namespace
}  // namespace moescope
