#include "profiler/text/table.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"

namespace moescope {
namespace {

std::string padded(const std::string& text, std::size_t width, Align align) {
  const std::string space(width - text_width(text), ' ');
  return align == Align::kLeft ? text + space : space + text;
}

/// A cell of GitHub-flavoured markdown that shows `text`: nothing in it ends the cell, begins a tag, an
/// entity, a link, code or emphasis. A '<', '&' or '_' that begins none of them stays.
std::string escaped(const std::string& text) {
  const auto begins = [&](std::size_t at, std::string_view more) {
    const char next = at + 1 < text.size() ? text[at + 1] : ' ';
    return (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z') ||
           more.find(next) != std::string::npos;
  };
  const auto in_word = [&](std::size_t at) {
    const auto is_letter = [&](std::size_t i) {
      const auto byte = static_cast<unsigned char>(i < text.size() ? text[i] : ' ');
      return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
    };
    return at > 0 && is_letter(at - 1) && is_letter(at + 1);
  };
  constexpr std::string_view kAlways = "|`[\\*~";
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const bool special = kAlways.find(c) != std::string_view::npos || (c == '<' && begins(i, "/!?")) ||
                         (c == '&' && begins(i, "#")) || (c == '_' && !in_word(i));
    out += special ? fmt::format("\\{}", c) : std::string(1, c);
  }
  return out;
}

}  // namespace

Table::Table(std::vector<TableColumn> columns) : columns_(std::move(columns)) {
  for (TableColumn& column : columns_) {
    column.title = one_line(column.title);
  }
}

void Table::add_row(std::vector<std::string> cells) {
  if (cells.size() != columns_.size()) {
    throw InternalError(fmt::format("table row has {} cells for {} columns", cells.size(), columns_.size()));
  }
  for (std::string& cell : cells) {
    cell = one_line(cell);
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

std::string Table::text() const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    widths.push_back(text_width(columns_[c].title));
    for (const auto& row : rows_) {
      widths[c] = std::max(widths[c], row.empty() ? 0 : text_width(row[c]));
    }
  }
  std::string out;
  const auto line = [&](const auto& cell) {
    std::string text;
    for (std::size_t c = 0; c < columns_.size(); ++c) {
      text += (c == 0 ? "" : "  ") + padded(cell(c), widths[c], columns_[c].align);
    }
    text.erase(text.find_last_not_of(' ') + 1);
    out += text + '\n';
  };
  const auto rule = [&] { line([&](std::size_t c) { return std::string(widths[c], '-'); }); };
  line([&](std::size_t c) { return columns_[c].title; });
  rule();
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    if (!rows_[r].empty()) {
      line([&](std::size_t c) { return rows_[r][c]; });
    } else if (r + 1 < rows_.size()) {
      rule();
    }
  }
  return out;
}

std::string Table::markdown() const {
  std::string out = "|";
  for (const auto& column : columns_) {
    out += fmt::format(" {} |", escaped(column.title));
  }
  out += "\n|";
  for (const auto& column : columns_) {
    out += column.align == Align::kLeft ? " --- |" : " ---: |";
  }
  out += '\n';
  for (const auto& row : rows_) {
    if (row.empty()) {
      continue;
    }
    out += '|';
    for (const auto& cell : row) {
      out += fmt::format(" {} |", escaped(cell));
    }
    out += '\n';
  }
  return out;
}

}  // namespace moescope
