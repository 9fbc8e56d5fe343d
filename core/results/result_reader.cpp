#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/results/result.hpp"
#include "core/results/result_fields.hpp"

namespace moescope {
namespace {

using PlainJson = nlohmann::json;

/// Where a message points to: file, line and field.
struct Place {
  std::string file;
  std::int64_t line = 0;

  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw FileError(file, fmt::format("line {}{}{}", line, field.empty() ? "" : ": ", field), what);
  }
};

const PlainJson& field_of(const PlainJson& object, const char* key, const Place& place) {
  const auto found = object.find(key);
  if (found == object.end()) {
    place.fail(key, "missing");
  }
  return *found;
}

template <class T>
void read_number(const PlainJson& json, const char* key, const Place& place, T& out) {
  const bool fits = std::is_floating_point_v<T> ? json.is_number()
                    : std::is_unsigned_v<T>     ? json.is_number_unsigned()
                                                : json.is_number_integer() &&
                                                  (!json.is_number_unsigned() ||
                                                   std::in_range<std::int64_t>(json.get<std::uint64_t>()));
  if (!fits) {
    place.fail(key, fmt::format("{} is not the number that belongs here", shown(json)));
  }
  out = json.get<T>();
}

template <class Enum>
void read_enum(const PlainJson& json, const char* key, const Place& place, std::initializer_list<Enum> values,
               Enum& out) {
  for (const Enum value : values) {
    if (json.is_string() && json.get_ref<const std::string&>() == to_string(value)) {
      out = value;
      return;
    }
  }
  place.fail(key, fmt::format("{} is not a known value", shown(json)));
}

void read_value(const PlainJson& json, const char* key, const Place& place, std::string& out) {
  if (!json.is_string()) {
    place.fail(key, fmt::format("{} is not a string", shown(json)));
  }
  out = json.get<std::string>();
}
void read_value(const PlainJson& json, const char* key, const Place& place, bool& out) {
  if (!json.is_boolean()) {
    place.fail(key, fmt::format("{} is not true or false", shown(json)));
  }
  out = json.get<bool>();
}
void read_value(const PlainJson& json, const char* key, const Place& place, std::int64_t& out) {
  read_number(json, key, place, out);
}
void read_value(const PlainJson& json, const char* key, const Place& place, std::uint64_t& out) {
  read_number(json, key, place, out);
}
void read_value(const PlainJson& json, const char* key, const Place& place, double& out) {
  read_number(json, key, place, out);
}
template <class T>
void read_value(const PlainJson& json, const char* key, const Place& place, std::optional<T>& out) {
  out.reset();
  if (!json.is_null()) {
    read_number(json, key, place, out.emplace());
  }
}
void read_value(const PlainJson& json, const char* key, const Place& place, Source& out) {
  read_enum(json, key, place, {Source::kAnalytic, Source::kModelled, Source::kMeasured}, out);
}
void read_value(const PlainJson& json, const char* key, const Place& place, Status& out) {
  read_enum(json, key, place, {Status::kOk, Status::kSkipped, Status::kUnavailable, Status::kFailed}, out);
}
template <class T>
void read_value(const PlainJson& json, const char* key, const Place& place, std::map<std::string, T>& out) {
  if (!json.is_object()) {
    place.fail(key, "is not an object");
  }
  for (const auto& [name, value] : json.items()) {
    read_value(value, key, place, out[name]);
  }
}

int version_of(const PlainJson& json, const Place& place) {
  std::int64_t version = 0;
  read_number(field_of(json, "schema_version", place), "schema_version", place, version);
  if (version < 1 || version > kResultSchemaVersion) {
    place.fail("schema_version", fmt::format("{} was written by another version; this one reads 1 to {}",
                                             version, kResultSchemaVersion));
  }
  return static_cast<int>(version);
}

/// Reads the fields that `version` has; the others keep the value that stands for "not recorded".
auto field_reader(const PlainJson& fields, int version, const Place& place) {
  return [&fields, version, &place](const char* key, auto& value, int since) {
    if (since <= version) {
      read_value(field_of(fields, key, place), key, place, value);
    }
  };
}

const PlainJson& object_of(const PlainJson& json, const char* key, const Place& place) {
  const PlainJson& fields = field_of(json, key, place);
  if (!fields.is_object()) {
    place.fail(key, "is not an object");
  }
  return fields;
}

template <class T>
void validate(const T& record, const Place& place) {
  try {
    record.validate();
  } catch (const InvalidArgument& error) {
    place.fail("", error.what());
  }
}

/// Bytes that a layer's owner adds up (LayerExecution::memory), which earlier revisions called measured.
bool is_memory_formula(std::string_view metric) {
  return metric == "workspace_bytes" || metric == "peak_bytes";
}

/// Puts lines together: rows of a sweep wait for the line that ends their point.
class LogParser {
 public:
  explicit LogParser(std::string name) : place_{std::move(name), 0} {}

  /// A whole line; false when what came so far does not count yet.
  bool add(const std::string& text) {
    ++place_.line;
    if (text.find_first_not_of(" \t\r") == std::string::npos) {
      return false;  // nothing to count, and nothing that could be wrong
    }
    const auto json = parse_json<PlainJson>(text, {place_.file, fmt::format("line {}", place_.line)});
    if (!json.is_object()) {
      place_.fail("", "is not a JSON object");
    }
    const int version = version_of(json, place_);
    std::string run_id;
    read_value(field_of(json, "run_id", place_), "run_id", place_, run_id);
    if (json.contains("header")) {
      return add_header(object_of(json, "header", place_), version, std::move(run_id));
    }
    if (runs_.empty() || runs_.back().header.run_id != run_id) {
      place_.fail("run_id", fmt::format("{} has no header line before it", detail::printable(run_id)));
    }
    const bool ends_point = json.contains("point") && json["point"].is_object();
    return ends_point ? add_point(json["point"], version) : add_row(json, version);
  }

  /// A last line without an end: what an interrupted sweep was writing. Elsewhere it is a line like others.
  void add_last(const std::string& text) {
    if (!runs_.empty() && runs_.back().header.experiment.empty()) {
      add(text);
    }
  }

  std::vector<RecordedRun> take_runs() { return std::move(runs_); }

 private:
  bool add_header(const PlainJson& fields, int version, std::string run_id) {
    if (!waiting_.empty()) {
      place_.fail("header",
                  fmt::format("point {} before it has no end", detail::printable(waiting_.front().point)));
    }
    RunHeader& header = runs_.emplace_back().header;
    header.run_id = std::move(run_id);
    header.schema_version = version;
    detail::for_each_header_field(header, field_reader(fields, version, place_));
    return true;
  }

  bool add_row(const PlainJson& json, int version) {
    ResultRow row;
    detail::for_each_row_field(row, field_reader(json, version, place_));
    validate(row, place_);
    if (is_memory_formula(row.metric) && row.source == Source::kMeasured) {
      row.source = Source::kAnalytic;
    }
    if (!waiting_.empty() && waiting_.front().point != row.point) {
      place_.fail("point", fmt::format("\"{}\" begins before the end of {}", detail::printable(row.point),
                                       detail::printable(waiting_.front().point)));
    }
    const bool counts = row.point.empty();
    (counts ? runs_.back().rows : waiting_).push_back(std::move(row));
    return counts;
  }

  bool add_point(const PlainJson& fields, int version) {
    RecordedPoint point;
    detail::for_each_point_field(point, field_reader(fields, version, place_));
    validate(point, place_);
    if (point.rows != std::ssize(waiting_) || (!waiting_.empty() && waiting_.front().point != point.id)) {
      place_.fail("point", fmt::format("{} ends with {} rows, {} of {} stand before it",
                                       detail::printable(point.id), point.rows, waiting_.size(),
                                       waiting_.empty() ? "it" : detail::printable(waiting_.front().point)));
    }
    std::ranges::move(waiting_, std::back_inserter(runs_.back().rows));
    waiting_.clear();
    runs_.back().points.push_back(std::move(point));
    return true;
  }

  Place place_;
  std::vector<RecordedRun> runs_;
  std::vector<ResultRow> waiting_;  ///< rows of a point whose end has not come
};

/// A last line that is a whole object is one, though whoever wrote it left out its end; any other is what an
/// interruption left.
std::string with_last_end(std::string text) {
  const std::size_t begin = text.rfind('\n') + 1;  // 0 in a text of one line
  const bool whole = begin < text.size() && text[begin] == '{' && PlainJson::accept(text.substr(begin));
  return whole ? std::move(text) + '\n' : std::move(text);
}

}  // namespace

ResultLog parse_rows(std::istream& text, const std::string& name) {
  LogParser parser(name);
  ResultLog log;
  std::uint64_t bytes = 0;
  for (std::string line; std::getline(text, line);) {
    if (text.eof()) {
      parser.add_last(line);
      break;
    }
    bytes += line.size() + 1;
    if (parser.add(line)) {
      log.complete_bytes = bytes;
    }
  }
  log.runs = parser.take_runs();
  return log;
}

std::filesystem::path rows_file(const std::filesystem::path& given) {
  std::error_code none;
  std::filesystem::path of_folder = given / "rows.jsonl";
  return std::filesystem::is_directory(given, none) && file_exists(of_folder) ? of_folder : given;
}

std::vector<RecordedRun> read_rows(const std::filesystem::path& given) {
  const std::filesystem::path file = rows_file(given);
  std::string text = with_last_end(file.extension() == ".gz" ? unpack_gzip(read_bytes(file), file.string())
                                                             : read_text(file, kMostRowsBytes));
  const bool cut = !text.empty() && text.find('\n') == std::string::npos;
  std::istringstream stream(std::move(text));
  std::vector<RecordedRun> runs = parse_rows(stream, file.string()).runs;
  if (runs.empty()) {
    throw FileError(file.string(), cut ? "line 1" : "", cut ? "is cut off: holds no run" : "holds no run");
  }
  return runs;
}

}  // namespace moescope
