#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moescope {

enum class Align : std::uint8_t { kLeft, kRight };

struct TableColumn {
  std::string title;
  Align align = Align::kRight;
};

/// A table of text cells, shown as plain text or as GitHub-flavoured markdown. Cells may hold anything:
/// control characters are shown by their codes (one_line()).
class Table {
 public:
  explicit Table(std::vector<TableColumn> columns);
  /// Throws InternalError when the number of cells is not the number of columns.
  void add_row(std::vector<std::string> cells);
  /// A rule between the rows before and after (plain text only); leading and repeated ones are not drawn.
  void add_rule();
  std::int64_t num_rows() const;

  /// Columns padded to their widest cell (in characters, UTF-8), two spaces between; every line ends with
  /// '\n'.
  std::string text() const;
  /// Cells are shown as they are: what markdown would read as more than text is escaped.
  std::string markdown() const;

 private:
  std::vector<TableColumn> columns_;
  std::vector<std::vector<std::string>> rows_;  ///< an empty row is a rule
};

}  // namespace moescope
