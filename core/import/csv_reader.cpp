// CSV with a row for each expert that a token took: columns layer and expert, in the order of the run
// (llama.cpp's moe-trace and its kin). Lines that begin with # say nothing here.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "core/base/number_text.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/reader.hpp"

namespace moescope::detail {
namespace {

struct Columns {
  int layer = -1;
  int expert = -1;
  int weight = -1;
  int token = -1;  ///< or a step: what changes from one token to the next
  std::size_t count = 0;
  std::string twice = {};  ///< what is wrong, where two columns say the same
};

std::vector<std::string_view> split(std::string_view line) {
  std::vector<std::string_view> words;
  while (true) {
    const auto comma = line.find(',');
    std::string_view word = line.substr(0, comma);
    while (!word.empty() && (word.front() == ' ' || word.front() == '"')) {
      word.remove_prefix(1);
    }
    while (!word.empty() && (word.back() == ' ' || word.back() == '"' || word.back() == '\r')) {
      word.remove_suffix(1);
    }
    words.push_back(word);
    if (comma == std::string_view::npos) {
      return words;
    }
    line.remove_prefix(comma + 1);
  }
}

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> names) {
  return std::ranges::find(names, word) != names.end();
}

/// Columns of a header line; nothing when it is none.
Columns parse_columns(std::string_view line) {
  Columns columns;
  const auto words = split(line);
  columns.count = words.size();
  for (std::size_t i = 0; i < words.size(); ++i) {
    const auto take = [&](int& column, std::initializer_list<std::string_view> names) {
      if (!is_one_of(words[i], names)) {
        return;
      }
      if (column >= 0) {
        columns.twice = fmt::format("columns {} and {} say the same: one of them has to go",
                                    one_line(words[static_cast<std::size_t>(column)]), one_line(words[i]));
      }
      column = static_cast<int>(i);
    };
    take(columns.layer, {"layer", "layer_id", "layer_idx"});
    take(columns.expert, {"expert", "expert_id", "expert_idx"});
    take(columns.weight, {"weight", "gate", "score", "prob"});
    take(columns.token, {"token", "token_idx", "token_id", "pos", "position", "step"});
  }
  return columns;
}

bool is_comment(std::string_view line) { return line.empty() || line == "\r" || line.front() == '#'; }

/// Calls visit(line number, line) for each line that says something; false ends it.
template <class Visit>
void for_each_line(std::string_view text, Visit&& visit) {
  std::int64_t number = 0;
  while (!text.empty()) {
    const auto end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    ++number;
    if (!is_comment(line) && !visit(number, line)) {
      return;
    }
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
}

/// What was read of one layer.
struct LayerRows {
  std::vector<std::int64_t> ids;
  std::vector<float> gates;
  std::vector<std::int64_t> tokens;  ///< the token column
};

class CsvParser {
 public:
  CsvParser(const ImportSource& source, const ImportOptions& options) : source_(source), options_(options) {}

  RawRouting parse(std::string_view text) {
    for_each_line(text, [&](std::int64_t number, std::string_view line) {
      if (columns_.count == 0) {
        read_header(number, line);
      } else {
        read_row(number, line);
      }
      return true;
    });
    if (layers_.empty()) {
      throw FileError(source_.path, "", "holds no rows");
    }
    return routing();
  }

 private:
  [[noreturn]] void fail(std::int64_t number, std::string_view what) const {
    throw FileError(source_.path, fmt::format("line {}", number), what);
  }

  void read_header(std::int64_t number, std::string_view line) {
    columns_ = parse_columns(line);
    if (columns_.layer < 0 || columns_.expert < 0) {
      fail(number,
           fmt::format("'{}': must name the columns, of which layer and expert are needed", printable(line)));
    }
    if (!columns_.twice.empty()) {
      fail(number, columns_.twice);
    }
    if (const auto words = split(line); std::ranges::find(words, "count") != words.end()) {
      fail(number,
           fmt::format("'{}': counts how often experts were used, which tokens took them is lost; what "
                       "would do is a row for each token and expert, or an array of ids",
                       printable(line)));
    }
  }

  std::int64_t integer(std::int64_t number, std::string_view name, std::string_view word) const {
    const auto value = parse_number<std::int64_t>(word);
    if (!value) {
      fail(number, fmt::format("{} = '{}': must be a whole number", name, printable(word)));
    }
    return *value;
  }

  void read_row(std::int64_t number, std::string_view line) {
    const auto words = split(line);
    if (words.size() != columns_.count) {
      fail(number,
           fmt::format("'{}': has {} columns, the header {}", printable(line), words.size(), columns_.count));
    }
    const auto word = [&](int column) { return words[static_cast<std::size_t>(column)]; };
    const std::int64_t layer = integer(number, "layer", word(columns_.layer));
    constexpr std::int64_t kLimit = 1 << 20;
    if (layer < 0 || layer >= kLimit) {
      fail(number, fmt::format("layer = {}: must be in [0, {})", layer, kLimit));
    }
    LayerRows& rows = layers_[layer];
    rows.ids.push_back(integer(number, "expert", word(columns_.expert)));
    if (columns_.token >= 0) {
      rows.tokens.push_back(integer(number, "token", word(columns_.token)));
    }
    if (columns_.weight >= 0) {
      const auto weight = parse_number<double>(word(columns_.weight));
      if (!weight) {
        fail(number, fmt::format("weight = '{}': must be a finite number", printable(word(columns_.weight))));
      }
      rows.gates.push_back(static_cast<float>(*weight));
    }
  }

  /// Experts of a token: as asked for, or the rows that one token has.
  std::int64_t find_top_k() {
    if (options_.top_k) {
      return *options_.top_k;
    }
    const std::vector<std::int64_t>& tokens = layers_.begin()->second.tokens;
    if (tokens.empty()) {
      throw InvalidArgument(
          "top_k", "none",
          fmt::format("{} has no column that says where a token ends: --top-k says how many "
                      "rows are a token's",
                      source_.path));
    }
    const auto other = std::ranges::find_if(tokens, [&](std::int64_t t) { return t != tokens.front(); });
    return other - tokens.begin();
  }

  RawRouting routing() {
    const std::int64_t k = find_top_k();
    RawRouting routing;
    routing.top_k = k;
    routing.num_layers = std::ssize(layers_);
    const auto& first = *layers_.begin();
    for (const auto& [layer, rows] : layers_) {
      const std::int64_t count = std::ssize(rows.ids);
      if (k < 1 || count % k != 0) {
        throw FileError(source_.path, fmt::format("layer {}", layer),
                        fmt::format("{} rows: must be a multiple of top_k = {}", count, k));
      }
      if (count != std::ssize(first.second.ids)) {
        throw FileError(source_.path, fmt::format("layer {}", layer),
                        fmt::format("{} rows, layer {} has {}: every layer must have every token", count,
                                    first.first, first.second.ids.size()));
      }
      for (std::size_t i = 0; i < rows.tokens.size(); ++i) {
        const std::size_t begin = i - i % static_cast<std::size_t>(k);
        if (rows.tokens[i] != rows.tokens[begin]) {
          throw FileError(
              source_.path, fmt::format("layer {}, row {}", layer, i),
              fmt::format("token {} among the {} rows of token {}", rows.tokens[i], k, rows.tokens[begin]));
        }
      }
      routing.layers.push_back(layer);
      routing.ids.insert(routing.ids.end(), rows.ids.begin(), rows.ids.end());
      routing.gates.insert(routing.gates.end(), rows.gates.begin(), rows.gates.end());
    }
    routing.num_tokens = std::ssize(first.second.ids) / k;
    routing.notes.push_back(fmt::format("CSV: the rows of a layer in order, {} a token{}", k,
                                        options_.top_k ? "" : ", as its column says"));
    return routing;
  }

  const ImportSource& source_;
  const ImportOptions& options_;
  Columns columns_;
  std::map<std::int64_t, LayerRows> layers_;
};

}  // namespace

bool is_csv(const ImportSource& source) {
  if (source.file.extension() == ".csv") {
    return true;
  }
  bool found = false;
  for_each_line(source.head, [&](std::int64_t, std::string_view line) {
    const Columns columns = parse_columns(line);
    found = columns.layer >= 0 && columns.expert >= 0;
    return false;  // the first line alone
  });
  return found;
}

RawRouting read_csv(const ImportSource& source, const ImportOptions& options) {
  return parse_csv(source, read_text(source.file, kMostRowsBytes), options);
}

RawRouting parse_csv(const ImportSource& source, std::string_view text, const ImportOptions& options) {
  return CsvParser(source, options).parse(text);
}

}  // namespace moescope::detail
