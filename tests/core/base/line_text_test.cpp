#include "core/base/line_text.hpp"

#include <gtest/gtest.h>

namespace moescope {
namespace {

TEST(LineText, ShowsWhatATerminalWouldObey) {
  EXPECT_EQ(one_line("a\n\t\r\x1b[2J\x07\x7f"), "a\\n\\t\\r\\x1b[2J\\x07\\x7f");
  EXPECT_EQ(one_line("\u009b2J"), "\\u009b2J") << "CSI as one character";
  EXPECT_EQ(one_line(std::string_view("\0x", 2)), "\\x00x");
  EXPECT_EQ(one_line("a\u202eb\u2028"), "a\\u202eb\\u2028") << "reorders, breaks lines";
  EXPECT_EQ(plain_lines("a\tb\n\x1b"), "a\tb\n\\x1b");
}

TEST(LineText, ShowsBytesThatAreNoUtf8AndLeavesTheRest) {
  EXPECT_EQ(one_line("caf\xe9"), "caf\\xe9");
  EXPECT_EQ(one_line("\xc0\xaf\xed\xa0\x80\xf5\xe2\x82"), "\\xc0\\xaf\\xed\\xa0\\x80\\xf5\\xe2\\x82")
      << "overlong, a surrogate, beyond the last character, cut short";
  for (const char* text : {"", "plain `$(x)` \"'\\%", "caf\u00e9 \u20ac \U0001f642"}) {
    EXPECT_EQ(one_line(text), text);
  }
}

TEST(LineText, CountsCharacters) {
  EXPECT_EQ(text_width("caf\u00e9"), 4U);
  EXPECT_EQ(first_characters("\u00e9\u00e9x", 2), "\u00e9\u00e9");
  EXPECT_EQ(first_characters("ab", 5), "ab");
}

}  // namespace
}  // namespace moescope
