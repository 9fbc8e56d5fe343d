#include "experiments/options/table_options.hpp"

#include <cstdlib>
#include <iostream>

#include "profiler/text/progress.hpp"

namespace moescope {
namespace {

TableStyle style_here() {
  return people_style(stdout_columns(), std::getenv("COLUMNS"), std::getenv("NO_COLOR"), std::getenv("TERM"));
}

}  // namespace

void add_table_options(Cli app, TableOptions& options) {
  app.add_option("--format", options.format,
                 "table (default), md, csv or json; of csv and json, sentences go to standard error")
      .type_name("NAME");
  app.add_flag("--wide", options.wide, "tables with all their columns, however wide the terminal");
}

TableStyle table_style(const TableOptions& options) {
  TableStyle style = style_here();
  style.format = parse_table_format(options.format);
  if (options.wide) {
    style.width = 0;
  }
  return style;
}

StandardTables::StandardTables(const TableOptions& options)
    : TableOutput(std::cout, std::cerr, table_style(options)) {}

bool stdout_has_colours() { return style_here().colour; }
std::size_t stdout_width() { return style_here().width; }
std::size_t stderr_width() {
  return message_width(stderr_is_terminal() ? stderr_columns() : 0, std::getenv("COLUMNS"));
}

}  // namespace moescope
