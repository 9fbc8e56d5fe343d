#pragma once

#include <sstream>
#include <string>
#include <vector>

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
