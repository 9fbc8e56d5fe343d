#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "core/base/line_text.hpp"
#include "tests/support/run_moescope.hpp"

/// What the program's own help says of it.
namespace moescope::test {

inline std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    lines.push_back(line);
  }
  return lines;
}

/// A command to copy is broken where a shell lets it be; one word may be longer than any line.
inline void expect_fits(const std::string& text, std::size_t width, const std::string& what) {
  for (const std::string& line : lines_of(text)) {
    const std::size_t begin = std::min(line.find_first_not_of(' '), line.size());
    const bool one_word = line.find(' ', begin) == std::string::npos;
    EXPECT_TRUE(text_width(line) <= width || one_word) << what << ": " << text_width(line) << ": " << line;
  }
}

/// Names below "Commands:".
inline std::vector<std::string> commands() {
  const TemporaryDirectory directory;
  std::vector<std::string> names;
  bool inside = false;
  for (const std::string& line : lines_of(run_moescope({"--help"}, directory).out)) {
    inside = (inside || line == "Commands:") && !line.empty();
    if (inside && line.starts_with("  ") && line[2] != ' ') {
      names.push_back(line.substr(2, line.find(' ', 2) - 2));
    }
  }
  return names;
}

}  // namespace moescope::test
