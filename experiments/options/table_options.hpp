#pragma once

#include <cstddef>
#include <string>

#include "experiments/options/cli.hpp"
#include "profiler/text/table_output.hpp"

namespace moescope {

/// How a command's tables are shown, as typed.
struct TableOptions {
  std::string format = "table";
  bool wide = false;
};

/// --format and --wide.
void add_table_options(Cli app, TableOptions& options);

/// What standard output, the environment and the options say. Throws InvalidArgument("format", ...).
TableStyle table_style(const TableOptions& options);

/// Tables on standard output.
class StandardTables : public TableOutput {
 public:
  /// Throws InvalidArgument("format", ...).
  explicit StandardTables(const TableOptions& options);
};

/// Whether tables on standard output have colours.
bool stdout_has_colours();
/// Characters in a line of sentences on standard output, as table_style() has it without --wide.
std::size_t stdout_width();
/// Characters in a line on standard error; 0: any.
std::size_t stderr_width();

}  // namespace moescope
