// Tables for other programs: markdown, HTML, CSV and JSON.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/base/csv_text.hpp"
#include "core/base/number_text.hpp"
#include "core/base/utf8.hpp"
#include "profiler/text/html_text.hpp"
#include "profiler/text/table.hpp"

namespace moescope {
namespace {

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

Mark mark_of(const std::vector<TableCell>& row) {
  const auto found = std::ranges::find_if(row, [](const TableCell& c) { return c.mark != Mark::kNone; });
  return found == row.end() ? Mark::kNone : found->mark;
}

bool is_nothing(const TableCell& cell) { return !cell.value && (cell.text.empty() || cell.text == "-"); }

}  // namespace

std::string Table::markdown() const {
  std::string out = "|";
  const auto for_people = [&](std::size_t c) { return columns_[c].need != Need::kPrograms; };
  for (const auto& column : columns_) {
    out += column.need == Need::kPrograms ? "" : fmt::format(" {} |", escaped(column.title));
  }
  out += "\n|";
  for (const auto& column : columns_) {
    out += column.need == Need::kPrograms ? "" : column.align == Align::kLeft ? " --- |" : " ---: |";
  }
  out += '\n';
  for (const auto& row : rows_) {
    if (row.empty()) {
      continue;
    }
    out += '|';
    for (std::size_t c = 0; c < row.size(); ++c) {
      out += for_people(c) ? fmt::format(" {} |", escaped(row[c].text)) : "";
    }
    out += '\n';
  }
  return out;
}

std::string Table::html(bool everything) const {
  const auto is_shown = [&](std::size_t c) { return everything || columns_[c].need != Need::kPrograms; };
  const auto is_left = [&](std::size_t c) { return columns_[c].align == Align::kLeft; };
  std::string out = "<table class=sortable>\n<thead><tr>";
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    if (is_shown(c)) {
      out +=
          fmt::format("<th scope=col{}>{}</th>", is_left(c) ? " class=t" : "", html_text(columns_[c].title));
    }
  }
  out += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows_) {
    if (row.empty()) {
      continue;
    }
    out += "<tr>";
    for (std::size_t c = 0; c < row.size(); ++c) {
      if (!is_shown(c)) {
        continue;
      }
      const TableCell& cell = row[c];
      const std::string mark =
          cell.mark == Mark::kWithinSpread ? "within" : std::string(to_string(cell.mark));
      const std::string value = cell.value ? fmt::format(" data-value=\"{:.9g}\"", *cell.value) : "";
      out += fmt::format("<td class=\"{}{}\"{}>{}</td>", is_left(c) ? "t " : "", mark, value,
                         html_text(cell.text));
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table>\n";
}

std::string Table::csv() const {
  const bool marks = marked();
  std::string out;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    out += c == 0 ? "" : ",";
    out += csv_text(columns_[c].title);
  }
  out += marks ? ",mark\n" : "\n";
  for (const auto& row : rows_) {
    if (row.empty()) {
      continue;
    }
    for (std::size_t c = 0; c < row.size(); ++c) {
      out += c == 0 ? "" : ",";
      out += is_nothing(row[c]) ? ""
             : row[c].value     ? fmt::format("{}", *row[c].value)
                                : csv_text(row[c].text);
    }
    out += marks ? fmt::format(",{}\n", to_string(mark_of(row))) : "\n";
  }
  return out;
}

std::string Table::json() const {
  const bool marks = marked();
  auto table = nlohmann::ordered_json::object();
  table["columns"] = nlohmann::ordered_json::array();
  for (const auto& column : columns_) {
    table["columns"].push_back(column.title);
  }
  table["rows"] = nlohmann::ordered_json::array();
  for (const auto& row : rows_) {
    if (row.empty()) {
      continue;
    }
    auto object = nlohmann::ordered_json::object();
    for (std::size_t c = 0; c < row.size(); ++c) {
      auto& place = object[columns_[c].title];
      if (row[c].value) {
        place = *row[c].value;
      } else if (!is_nothing(row[c])) {
        place = row[c].text;
      }
    }
    if (marks && mark_of(row) != Mark::kNone) {
      object["mark"] = to_string(mark_of(row));
    }
    table["rows"].push_back(std::move(object));
  }
  return table.dump(1);
}

}  // namespace moescope
