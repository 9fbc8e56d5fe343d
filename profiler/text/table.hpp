#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moescope {

enum class Align : std::uint8_t { kLeft, kRight };

/// What becomes of a column where the table is wider than the page.
enum class Need : std::uint8_t {
  kAlways,    ///< stays, below its row where nothing else is left to go
  kUsual,     ///< is left out after every kExtra, the rightmost first
  kExtra,     ///< is left out first, the rightmost first
  kBelow,     ///< stands below its row, before anything is left out
  kPrograms,  ///< in CSV and JSON alone: what people read elsewhere
};

struct TableColumn {
  std::string title;
  Align align = Align::kRight;
  Need need = Need::kUsual;
  /// In plain text a cell that says the same as the one above, up to a rule, is left empty.
  bool grouped = false;
};

/// What a cell says about its row; a colour where there are colours.
enum class Mark : std::uint8_t {
  kNone,
  kFastest,
  kWithinSpread,  ///< not to be told from the fastest
  kGood,
  kBad,
};
/// "fastest", "within spread", "good", "bad"; empty for none.
std::string_view to_string(Mark mark);

/// A cell as people read it; for programs the number behind the text, in base units, where there is one.
struct TableCell {
  std::string text;
  std::optional<double> value = std::nullopt;
  Mark mark = Mark::kNone;

  TableCell(std::string shown) : text(std::move(shown)) {}  // NOLINT(*-explicit-*)
  TableCell(const char* shown) : text(shown) {}             // NOLINT(*-explicit-*)
  TableCell(std::string_view shown) : text(shown) {}        // NOLINT(*-explicit-*)
  TableCell(std::string shown, double number, Mark marked = Mark::kNone)
      : text(std::move(shown)), value(number), mark(marked) {}
};
/// Cells of format.hpp's texts with the numbers behind them.
TableCell seconds_cell(double seconds);
TableCell bytes_cell(double bytes);
TableCell percent_cell(double fraction);
/// "1.25x".
TableCell ratio_cell(double ratio);
TableCell count_cell(std::int64_t count);

/// The ends that SGR codes of a terminal have: what text() writes with colours, and nothing else.
std::vector<std::string_view> colour_codes();

/// The one table of the program. Cells may hold anything: control characters are shown by their codes
/// (one_line()). A cell "-" holds nothing.
class Table {
 public:
  /// Throws InternalError when two columns share a name.
  explicit Table(std::vector<TableColumn> columns);
  /// Throws InternalError when the number of cells is not the number of columns.
  void add_row(std::vector<TableCell> cells);
  template <class Cells>
  requires std::same_as<Cells, std::vector<std::string>>
  void add_row(const Cells& cells) { add_row(std::vector<TableCell>(cells.begin(), cells.end())); }
  /// A rule between the rows before and after (plain text only); leading and repeated ones are not drawn.
  void add_rule();
  std::int64_t num_rows() const;

  /// Columns padded to their widest cell (in characters, UTF-8), two spaces between; every line ends with
  /// '\n'. Lines of at most `width` characters (0: any): what does not fit is put below or left out, as
  /// columns say, and a last line tells how many are missing. Where columns that may not be left out are
  /// still wider, a wide first one stands above the others, and the rightmost of those go below.
  std::string text(std::size_t width = 0, bool colour = false) const;
  /// GitHub-flavoured markdown. Cells are shown as they are: what it would read as more than text is escaped.
  std::string markdown() const;
  /// An HTML table of class `sortable` with a head and a body; numbers in base units as data-value, marks as
  /// classes ("fastest", "within", "good", "bad"). `everything`: columns for programs, too.
  std::string html(bool everything = false) const;
  /// RFC 4180 with a header line; numbers in base units, nothing where there is no value. The last column is
  /// "mark" where a row has one.
  std::string csv() const;
  /// {"columns": [...], "rows": [{title: number, text or null}]}, with "mark" likewise.
  std::string json() const;

 private:
  struct Layout;
  Layout layout(std::size_t width) const;
  std::string lines(const Layout& layout, std::size_t width, bool colour) const;
  bool marked() const;

  std::vector<TableColumn> columns_;
  std::vector<std::vector<TableCell>> rows_;  ///< an empty row is a rule
};

}  // namespace moescope
