#include "profiler/text/wrap.hpp"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace moescope
