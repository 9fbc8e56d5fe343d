#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "core/error.hpp"
#include "core/result.hpp"
#include "core/result_fields.hpp"

namespace moescope {
namespace {

using Json = nlohmann::json;

/// Where a message points to: file, line and field.
struct Place {
  std::string file;
  std::int64_t line = 0;

  [[noreturn]] void fail(std::string_view field, std::string_view what) const {
    throw FileError(file, fmt::format("line {}{}{}", line, field.empty() ? "" : ": ", field), what);
  }
};

const Json& field_of(const Json& object, const char* key, const Place& place) {
  const auto found = object.find(key);
  if (found == object.end()) {
    place.fail(key, "missing");
  }
  return *found;
}

template <class T>
void read_number(const Json& json, const char* key, const Place& place, T& out) {
  const bool fits = std::is_floating_point_v<T> ? json.is_number()
                    : std::is_unsigned_v<T>     ? json.is_number_unsigned()
                                                : json.is_number_integer() &&
                                                  (!json.is_number_unsigned() ||
                                                   std::in_range<std::int64_t>(json.get<std::uint64_t>()));
  if (!fits) {
    place.fail(key, fmt::format("{} is not the number that belongs here", json.dump()));
  }
  out = json.get<T>();
}

template <class Enum>
void read_enum(const Json& json, const char* key, const Place& place, std::initializer_list<Enum> values,
               Enum& out) {
  for (const Enum value : values) {
    if (json.is_string() && json.get_ref<const std::string&>() == to_string(value)) {
      out = value;
      return;
    }
  }
  place.fail(key, fmt::format("{} is not a known value", json.dump()));
}

void read_value(const Json& json, const char* key, const Place& place, std::string& out) {
  if (!json.is_string()) {
    place.fail(key, fmt::format("{} is not a string", json.dump()));
  }
  out = json.get<std::string>();
}
void read_value(const Json& json, const char* key, const Place& place, bool& out) {
  if (!json.is_boolean()) {
    place.fail(key, fmt::format("{} is not true or false", json.dump()));
  }
  out = json.get<bool>();
}
void read_value(const Json& json, const char* key, const Place& place, std::int64_t& out) {
  read_number(json, key, place, out);
}
void read_value(const Json& json, const char* key, const Place& place, std::uint64_t& out) {
  read_number(json, key, place, out);
}
void read_value(const Json& json, const char* key, const Place& place, double& out) {
  read_number(json, key, place, out);
}
void read_value(const Json& json, const char* key, const Place& place, std::optional<double>& out) {
  out.reset();
  if (!json.is_null()) {
    read_number(json, key, place, out.emplace());
  }
}
void read_value(const Json& json, const char* key, const Place& place, Source& out) {
  read_enum(json, key, place, {Source::kAnalytic, Source::kModelled, Source::kMeasured}, out);
}
void read_value(const Json& json, const char* key, const Place& place, Status& out) {
  read_enum(json, key, place, {Status::kOk, Status::kSkipped, Status::kUnavailable, Status::kFailed}, out);
}
template <class T>
void read_value(const Json& json, const char* key, const Place& place, std::map<std::string, T>& out) {
  if (!json.is_object()) {
    place.fail(key, "is not an object");
  }
  for (const auto& [name, value] : json.items()) {
    read_value(value, key, place, out[name]);
  }
}

Json parse_line(const std::string& text, const Place& place) {
  Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) {
    place.fail("", "is not a whole JSON object");
  }
  std::int64_t version = 0;
  read_number(field_of(json, "schema_version", place), "schema_version", place, version);
  if (version != kResultSchemaVersion) {
    place.fail("schema_version", fmt::format("{} was written by another version; this one reads {}", version,
                                             kResultSchemaVersion));
  }
  return json;
}

}  // namespace

std::vector<RecordedRun> read_rows(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream || std::filesystem::is_directory(file)) {
    throw FileError(file.string(), "", "cannot be opened");
  }
  std::vector<RecordedRun> runs;
  Place place{file.string(), 0};
  for (std::string text; std::getline(stream, text);) {
    ++place.line;
    const Json json = parse_line(text, place);
    std::string run_id;
    read_value(field_of(json, "run_id", place), "run_id", place, run_id);
    if (json.contains("header")) {
      const Json& fields = json["header"];
      if (!fields.is_object()) {
        place.fail("header", "is not an object");
      }
      RunHeader& header = runs.emplace_back().header;
      header.run_id = run_id;
      detail::for_each_header_field(header, [&](const char* key, auto& value) {
        read_value(field_of(fields, key, place), key, place, value);
      });
      continue;
    }
    if (runs.empty() || runs.back().header.run_id != run_id) {
      place.fail("run_id", fmt::format("{} has no header line before it", run_id));
    }
    ResultRow row;
    detail::for_each_row_field(row, [&](const char* key, auto& value) {
      read_value(field_of(json, key, place), key, place, value);
    });
    try {
      row.validate();
    } catch (const InvalidArgument& error) {
      place.fail("", error.what());
    }
    runs.back().rows.push_back(std::move(row));
  }
  if (runs.empty()) {
    throw FileError(file.string(), "", "holds no run");
  }
  return runs;
}

}  // namespace moescope
