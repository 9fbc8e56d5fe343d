#include "profiler/text/progress.hpp"

#include <gtest/gtest.h>

#include <sstream>

namespace moescope {
namespace {

TEST(Progress, WritesPlainLinesWithAnEstimate) {
  std::ostringstream out;
  double now_s = 100;
  {
    Progress progress(out, Progress::Style::kLines, 3, [&] { return now_s; });
    progress.begin("zipf:0");
    progress.detail("round 3");
    EXPECT_LT(progress.left_s(), 0) << "nothing is known before the first step is done";
    now_s += 10;
    progress.advance();
    progress.begin("zipf:1");
    now_s += 4;
    EXPECT_DOUBLE_EQ(progress.left_s(), 16);
    now_s += 16;
    EXPECT_DOUBLE_EQ(progress.left_s(), 10)
        << "a step that takes longer than the mean still leaves the later ones";
    progress.advance();
    progress.begin("zipf:2");
  }
  EXPECT_EQ(out.str(),
            "[1/3] zipf:0\n"
            "[2/3] zipf:1, about 20 s left\n"
            "[3/3] zipf:2, about 15 s left\n");
}

TEST(Progress, RewritesOneLineOnATerminalAndWipesIt) {
  std::ostringstream out;
  double now_s = 0;
  {
    Progress progress(out, Progress::Style::kTerminal, 2, [&] { return now_s; });
    progress.begin("a long step");
    progress.detail("round 1");
    now_s = 600;
    progress.advance();
    progress.begin("b");
  }
  EXPECT_EQ(out.str(),
            "\r[1/2] a long step"
            "\r[1/2] a long step: round 1"
            "\r[2/2] b, about 10 min left"
            "\r" +
                std::string(26, ' ') + "\r");
  EXPECT_EQ(out.str().find('\n'), std::string::npos);
}

TEST(Progress, NeverPassesTheTerminalsWidth) {
  std::ostringstream out;
  std::size_t columns = 12;
  {
    Progress progress(
        out, Progress::Style::kTerminal, 2, [] { return 0.0; }, [&] { return columns; });
    progress.begin("größer als die Zeile");
    progress.detail("more");
    columns = 8;  // the window was made smaller: what is wiped is what fits
    progress.begin("b");
  }
  EXPECT_EQ(out.str(),
            "\r[1/2] größe"
            "\r[1/2] größe"
            "\r[1/2] b"
            "\r" +
                std::string(7, ' ') + "\r");
}

TEST(Progress, ShowsNamesAndDoesNotObeyThem) {
  std::ostringstream out;
  {
    Progress progress(out, Progress::Style::kLines, 1);
    progress.begin("trace:a\n\x1b[2Jb");
  }
  EXPECT_EQ(out.str(), "[1/1] trace:a\\n\\x1b[2Jb\n");
}

TEST(Progress, SaysNothingWhenQuiet) {
  std::ostringstream out;
  {
    Progress progress(out, Progress::Style::kSilent, 1);
    progress.begin("step");
    progress.advance();
  }
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace moescope
