#include "profiler/text/table_output.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <exception>
#include <nlohmann/json.hpp>
#include <ostream>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"

namespace moescope {

TableFormat parse_table_format(std::string_view text) {
  for (const auto& [name, format] : {std::pair("table", TableFormat::kTable),
                                     {"md", TableFormat::kMarkdown},
                                     {"csv", TableFormat::kCsv},
                                     {"json", TableFormat::kJson}}) {
    if (text == name) {
      return format;
    }
  }
  throw InvalidArgument("format", text, "must be table, md, csv or json");
}

TableStyle people_style(std::size_t terminal_columns, const char* columns, const char* no_color,
                        const char* term) {
  constexpr std::size_t kFileColumns = 120;
  TableStyle style;
  style.width = terminal_columns > 0 ? terminal_columns : kFileColumns;
  if (const auto asked = parse_number<int>(columns == nullptr ? "" : columns); asked && *asked > 0) {
    style.width = static_cast<std::size_t>(*asked);
  }
  const bool refused = no_color != nullptr && *no_color != '\0';
  style.colour =
      terminal_columns > 0 && !refused && std::string_view(term == nullptr ? "dumb" : term) != "dumb";
  return style;
}

std::size_t message_width(std::size_t terminal_columns, const char* columns) {
  const auto asked = parse_number<int>(columns == nullptr ? "" : columns);
  return asked && *asked > 0 ? static_cast<std::size_t>(*asked) : terminal_columns;
}

std::size_t stdout_columns() {
  constexpr std::size_t kUsual = 80;
  if (::isatty(STDOUT_FILENO) != 1) {
    return 0;
  }
  winsize size{};
  return ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

TableOutput::TableOutput(std::ostream& out, std::ostream& err, TableStyle style)
    : out_(out), err_(err), style_(style), errors_(std::uncaught_exceptions()) {
  if (style_.format == TableFormat::kMarkdown) {
    verbatim_.emplace(out_);  // its tables and the text around them are one document
  }
}

TableOutput::~TableOutput() {
  if (style_.format == TableFormat::kJson && std::uncaught_exceptions() == errors_) {
    const Verbatim whole(out_);
    out_ << fmt::format("{{\"tables\": [{}]}}\n", json_);
  }
}

bool TableOutput::for_people() const {
  return style_.format == TableFormat::kTable || style_.format == TableFormat::kMarkdown;
}

std::ostream& TableOutput::text() { return for_people() ? out_ : err_; }

void TableOutput::show(std::string_view name, const Table& table) {
  const Verbatim whole(out_);
  switch (style_.format) {
    case TableFormat::kTable:
      out_ << table.text(style_.width, style_.colour);
      break;
    case TableFormat::kMarkdown:
      // A paragraph right before it would take it for more of its text.
      out_ << (shown_ > 0 ? "\n" : "") << table.markdown() << '\n';
      break;
    case TableFormat::kCsv:
      out_ << (shown_ > 0 ? "\n" : "") << table.csv();
      break;
    case TableFormat::kJson: {
      const std::string body = table.json();
      json_ += fmt::format("{}\n{{\"name\": {},{}", json_.empty() ? "" : ",", nlohmann::json(name).dump(),
                           body.substr(1));
      break;
    }
  }
  ++shown_;
}

}  // namespace moescope
