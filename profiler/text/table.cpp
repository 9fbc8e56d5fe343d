#include "profiler/text/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "profiler/text/format.hpp"
#include "profiler/text/wrap.hpp"

namespace moescope {
namespace {

/// Before the other columns of a row whose first stands above them.
constexpr std::string_view kStackIndent = "    ";
constexpr std::string_view kReset = "\x1b[0m";

std::string_view colour_of(Mark mark) {
  switch (mark) {
    case Mark::kFastest:
    case Mark::kGood:
      return "\x1b[1;32m";
    case Mark::kWithinSpread:
      return "\x1b[33m";
    case Mark::kBad:
      return "\x1b[1;31m";
    case Mark::kNone:
      break;
  }
  return "";
}

std::string padded(const TableCell& cell, std::size_t width, Align align, bool colour) {
  const std::string space(width - text_width(cell.text), ' ');
  const std::string_view code = colour ? colour_of(cell.mark) : "";
  const std::string text = code.empty() ? cell.text : fmt::format("{}{}{}", code, cell.text, kReset);
  return align == Align::kLeft ? text + space : space + text;
}

/// A cell below its row. A command too long for the line begins on one of its own, as a shell takes it.
std::string below_text(const std::string& title, const std::string& text, std::size_t width) {
  const std::string whole = fmt::format("    {}: {}", title, text);
  if (width == 0 || text_width(whole) <= width || !is_command(text)) {
    return paragraph(whole, width, "      ");
  }
  return fmt::format("    {}:\n{}\n", title, fitted("      " + text, width));
}

/// Spaces at the end of a line are none's.
void end_line(std::string& out, std::string line) {
  line.erase(line.find_last_not_of(' ') + 1);
  out += line + '\n';
}

}  // namespace

std::string_view to_string(Mark mark) {
  constexpr std::array<std::string_view, 5> kNames = {"", "fastest", "within spread", "good", "bad"};
  return kNames.at(static_cast<std::size_t>(mark));
}

TableCell seconds_cell(double seconds) { return {format_seconds(seconds), seconds}; }
TableCell bytes_cell(double bytes) { return {format_bytes(bytes), bytes}; }
TableCell percent_cell(double fraction) { return {format_percent(fraction), fraction}; }
TableCell ratio_cell(double ratio) { return {fmt::format("{:.2f}x", ratio), ratio}; }
TableCell count_cell(std::int64_t count) { return {fmt::format("{}", count), static_cast<double>(count)}; }

std::vector<std::string_view> colour_codes() {
  return {kReset, colour_of(Mark::kFastest), colour_of(Mark::kWithinSpread), colour_of(Mark::kBad)};
}

/// Which columns stand where.
struct Table::Layout {
  std::vector<std::size_t> widths;  ///< of every column
  std::vector<std::size_t> shown;   ///< columns side by side
  std::vector<std::size_t> below;
  std::size_t left_out = 0;
  bool stacked = false;  ///< the first column on lines of its own, the others below it, indented

  std::size_t width() const {
    std::size_t sum = shown.empty() ? 0 : 2 * (shown.size() - 1);
    for (const std::size_t c : shown) {
      sum += widths[c];
    }
    return stacked ? sum - widths[shown.front()] - 2 + kStackIndent.size() : sum;
  }
};

Table::Table(std::vector<TableColumn> columns) : columns_(std::move(columns)) {
  std::set<std::string> titles;
  for (TableColumn& column : columns_) {
    column.title = one_line(column.title);
    if (!titles.insert(column.title).second) {
      throw InternalError(fmt::format("two columns of a table are called '{}'", column.title));
    }
  }
}

void Table::add_row(std::vector<TableCell> cells) {
  if (cells.size() != columns_.size()) {
    throw InternalError(fmt::format("table row has {} cells for {} columns", cells.size(), columns_.size()));
  }
  for (TableCell& cell : cells) {
    cell.text = one_line(cell.text);
  }
  rows_.push_back(std::move(cells));
}

void Table::add_rule() {
  if (!rows_.empty() && !rows_.back().empty()) {
    rows_.emplace_back();
  }
}

std::int64_t Table::num_rows() const {
  return std::ranges::count_if(rows_, [](const auto& row) { return !row.empty(); });
}

bool Table::marked() const {
  return std::ranges::any_of(rows_, [](const auto& row) {
    return std::ranges::any_of(row, [](const TableCell& cell) { return cell.mark != Mark::kNone; });
  });
}

Table::Layout Table::layout(std::size_t width) const {
  Layout layout;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t widest = text_width(columns_[c].title);
    for (const auto& row : rows_) {
      widest = std::max(widest, row.empty() ? 0 : text_width(row[c].text));
    }
    layout.widths.push_back(widest);
    if (columns_[c].need != Need::kPrograms) {
      layout.shown.push_back(c);
    }
  }
  const Layout everything = layout;
  const auto too_wide = [&] { return width > 0 && layout.width() > width; };
  // Takes out the rightmost shown column of a kind; the first column says what a row is of.
  const auto take = [&](Need need) {
    for (std::size_t i = layout.shown.size(); i-- > 1;) {
      if (columns_[layout.shown[i]].need == need) {
        const std::size_t column = layout.shown[i];
        layout.shown.erase(layout.shown.begin() + static_cast<std::ptrdiff_t>(i));
        return std::optional(column);
      }
    }
    return std::optional<std::size_t>();
  };
  const auto put_below = [&](Need need) {
    while (too_wide()) {
      const auto column = take(need);
      if (!column) {
        break;
      }
      layout.below.insert(layout.below.begin(), *column);
    }
  };
  const auto narrow = [&] {
    put_below(Need::kBelow);
    for (const Need need : {Need::kExtra, Need::kUsual}) {
      while (too_wide() && take(need)) {
        ++layout.left_out;
      }
    }
  };
  narrow();
  if (too_wide() && everything.shown.size() > 1 && layout.widths[layout.shown.front()] > width / 2) {
    layout = everything;  // without its first column there is room for more of the others
    layout.stacked = true;
    narrow();
  }
  put_below(Need::kAlways);
  layout.stacked = layout.stacked && layout.shown.size() > 1;
  return layout;
}

std::string Table::lines(const Layout& layout, std::size_t width, bool colour) const {
  std::string out;
  const auto line = [&](const auto& cell) {
    std::string text;
    for (const std::size_t c : layout.shown) {
      if (layout.stacked && c == layout.shown.front()) {
        const std::string first = cell(c).text;
        out += first.empty() ? "" : paragraph(first, width, "  ");
        text = kStackIndent.substr(2);
        continue;
      }
      text += c == layout.shown.front() ? "" : "  ";
      text += padded(cell(c), layout.widths[c], columns_[c].align, colour);
    }
    end_line(out, std::move(text));
  };
  const auto rule = [&] {
    line([&](std::size_t c) {
      return TableCell(std::string(width == 0 ? layout.widths[c] : std::min(layout.widths[c], width), '-'));
    });
  };
  line([&](std::size_t c) { return TableCell(columns_[c].title); });
  rule();
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    if (rows_[r].empty()) {
      if (r + 1 < rows_.size()) {
        rule();
      }
      continue;
    }
    bool same = r > 0 && !rows_[r - 1].empty();  // grouped columns nest: a new group begins all to its right
    line([&](std::size_t c) {
      const bool repeats = same && columns_[c].grouped && rows_[r][c].text == rows_[r - 1][c].text;
      same = same && (repeats || !columns_[c].grouped);
      return repeats ? TableCell("") : rows_[r][c];
    });
    for (const std::size_t c : layout.below) {
      if (!rows_[r][c].text.empty() && rows_[r][c].text != "-") {
        out += below_text(columns_[c].title, rows_[r][c].text, width);
      }
    }
  }
  return out;
}

std::string Table::text(std::size_t width, bool colour) const {
  const Layout chosen = layout(width);
  std::string out = lines(chosen, width, colour);
  if (chosen.left_out > 0) {
    out += fmt::format("{} more column{}: --wide or --format csv\n", chosen.left_out,
                       chosen.left_out == 1 ? "" : "s");
  }
  return out;
}

}  // namespace moescope
