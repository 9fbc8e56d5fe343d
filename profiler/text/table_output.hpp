#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/text/fitted_output.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

enum class TableFormat : std::uint8_t { kTable, kMarkdown, kCsv, kJson };
/// "table", "md", "csv" or "json". Throws InvalidArgument("format", ...).
TableFormat parse_table_format(std::string_view text);

/// How tables are shown.
struct TableStyle {
  TableFormat format = TableFormat::kTable;
  std::size_t width = 0;  ///< of a line, in characters; 0: any
  bool colour = false;
};

/// What standard output and the environment say to a table: `terminal_columns` is 0 where it is no terminal;
/// of the variables null means unset. COLUMNS wins where it is a number; a file has 120 columns. NO_COLOR
/// and TERM=dumb switch colours off.
TableStyle people_style(std::size_t terminal_columns, const char* columns, const char* no_color,
                        const char* term);
/// Characters in a line of what is written to standard error: COLUMNS where it is a number, else those of the
/// terminal; 0 (any) where `terminal_columns` is 0: a message in a file is one line.
std::size_t message_width(std::size_t terminal_columns, const char* columns);
/// Characters in a line of the terminal that standard output is; 0 where it is none.
std::size_t stdout_columns();

/// A command's tables, and the sentences around them, in one format. Of csv and json standard output has the
/// tables alone: sentences go to `err`. CSV of several tables has an empty line between them; JSON is one
/// document, {"tables": [{"name", "columns", "rows"}]}, written at the end.
class TableOutput {
 public:
  /// Both streams must outlive this.
  TableOutput(std::ostream& out, std::ostream& err, TableStyle style);
  /// Ends the JSON document, unless an error is on its way.
  ~TableOutput();
  TableOutput(const TableOutput&) = delete;
  TableOutput& operator=(const TableOutput&) = delete;
  TableOutput(TableOutput&&) = delete;
  TableOutput& operator=(TableOutput&&) = delete;

  /// Where sentences go.
  std::ostream& text();
  /// `name` is for JSON.
  void show(std::string_view name, const Table& table);
  const TableStyle& style() const { return style_; }
  /// Whether it is read by people: sentences and tables in one stream.
  bool for_people() const;

 private:
  std::ostream& out_;
  std::ostream& err_;
  TableStyle style_;
  std::size_t shown_ = 0;
  std::string json_;
  int errors_;
  std::optional<Verbatim> verbatim_;
};

}  // namespace moescope
