#include "core/base/line_text.hpp"

#include <gtest/gtest.h>

#include <string>

namespace moescope {
namespace {

TEST(LineText, ShowsControlCharactersInsteadOfObeyingThem) {
  EXPECT_EQ(one_line("plain, größer, 層"), "plain, größer, 層");
  EXPECT_EQ(one_line("a\nb\tc"), "a\\nb\\tc");
  EXPECT_EQ(one_line("\x1b[2J\r\x7f"), "\\x1b[2J\\x0d\\x7f");
  EXPECT_EQ(one_line("\xc2\x9b"
                     "31m"),
            "\\x9b31m")
      << "the control sequence introducer of eight bits";
  EXPECT_EQ(one_line(std::string("\0x", 2)), "\\x00x");
}

TEST(LineText, CutsBetweenCharacters) {
  EXPECT_EQ(text_width("größe"), 5U);
  EXPECT_EQ(first_characters("größe", 3), "grö");
  EXPECT_EQ(first_characters("größe", 5), "größe");
  EXPECT_EQ(first_characters("größe", 50), "größe");
  EXPECT_EQ(first_characters("größe", 0), "");
}

}  // namespace
}  // namespace moescope
