#pragma once

#include <string>
#include <string_view>

namespace moescope {

/// Spreadsheets compute what begins like a formula. An apostrophe before it says that it is text; so that it
/// can be taken away again, text that begins with one gets another.
inline std::string_view csv_mark(std::string_view text) {
  return !text.empty() && std::string_view("=+-@\t\r\n'").find(text.front()) != std::string_view::npos ? "'"
                                                                                                       : "";
}

/// Text as a field of RFC 4180.
inline std::string csv_text(std::string_view text) {
  std::string cell(csv_mark(text));
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) {
    return cell.append(text);
  }
  cell.insert(cell.begin(), '"');
  for (const char c : text) {
    cell.append(c == '"' ? 2 : 1, c);
  }
  cell.push_back('"');
  return cell;
}

}  // namespace moescope
