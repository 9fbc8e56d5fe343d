// The published schema of results, made from the tables of fields, so that no field can be in one and not in
// the other.
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "core/layer/stage.hpp"
#include "core/results/result.hpp"
#include "core/results/result_fields.hpp"

namespace moescope {
namespace {

using OrderedJson = nlohmann::ordered_json;

/// What the type of a member does not say of a field of a row, a header or a point's end.
struct Text {
  const char* about = "";
  bool may_be_empty = true;
};

const std::map<std::string_view, Text> kRowTexts = {
    {"stage", {"part of the layer; device: the machine itself, whatever layer runs on it"}},
    {"source",
     {"analytic: computed from the shape and the actual routing (workspace_bytes and peak_bytes, too: sums "
      "of what "
      "is allocated, which earlier revisions called measured); modelled: from a simulated memory "
      "hierarchy; "
      "measured: read from the machine that ran it"}},
    {"metric", {"what the value is; its unit stands in the name", false}},
    {"value", {"null unless status is ok"}},
    {"unit", {"s, bytes, flop, fraction, count, ...", false}},
    {"samples", {"samples the value is the median of"}},
    {"spread", {"(max - min) / median of the samples"}},
    {"status", {""}},
    {"reason", {"not empty unless status is ok"}},
    {"point", {"id of the sweep's point it belongs to; empty outside sweeps"}},
    {"repro", {"command that measures this again", false}},
};

const std::map<std::string_view, Text> kHeaderTexts = {
    {"command_line", {""}},
    {"git_revision", {"commit the program was built from, or unknown"}},
    {"git_dirty", {"true when the tree had changes beside that commit"}},
    {"version", {""}},
    {"build", {"build type, compiler, -march, sanitizers"}},
    {"device", {"", false}},
    {"driver", {"version, or unavailable: reason", false}},
    {"libraries", {"name to version"}},
    {"machine", {"numbers with the unit in the key"}},
    {"started_utc", {"ISO 8601", false}},
    {"experiment", {"of a sweep: its experiment as canonical JSON (experiment.schema.json); else empty"}},
};

const std::map<std::string_view, Text> kPointTexts = {
    {"id", {"hash of what the point asks for", false}},
    {"rows", {"how many stand before this line"}},
    {"status", {"ok when anything was measured"}},
    {"reason", {"not empty unless status is ok"}},
    {"elapsed_s", {"what the point took"}},
};

template <class Enum>
OrderedJson names_of(std::initializer_list<Enum> values) {
  OrderedJson names = OrderedJson::array();
  for (const Enum value : values) {
    names.push_back(std::string(to_string(value)));
  }
  return names;
}

OrderedJson type_of(const std::string&) { return {{"type", "string"}}; }
OrderedJson type_of(bool) { return {{"type", "boolean"}}; }
OrderedJson type_of(std::int64_t) { return {{"type", "integer"}}; }
OrderedJson type_of(std::uint64_t) { return {{"type", "integer"}}; }
OrderedJson type_of(double) { return {{"type", "number"}}; }
OrderedJson type_of(Source) {
  return {{"enum", names_of({Source::kAnalytic, Source::kModelled, Source::kMeasured})}};
}
OrderedJson type_of(Status) {
  return {{"enum", names_of({Status::kOk, Status::kSkipped, Status::kUnavailable, Status::kFailed})}};
}
template <class T>
OrderedJson type_of(const std::optional<T>&) {
  return {{"type", {type_of(T{})["type"], "null"}}};
}
template <class T>
OrderedJson type_of(const std::map<std::string, T>&) {
  return {{"type", "object"}, {"additionalProperties", type_of(T{})}};
}

/// From `first` on, as the values of schema_version.
OrderedJson versions(int first) {
  OrderedJson all = OrderedJson::array();
  for (int version = first; version <= kResultSchemaVersion; ++version) {
    all.push_back(version);
  }
  return all;
}

OrderedJson run_id() { return {{"type", "string"}, {"minLength", 1}}; }

OrderedJson object() {
  return {{"type", "object"}, {"additionalProperties", false}, {"required", OrderedJson::array()}};
}

OrderedJson stages() {
  OrderedJson names = OrderedJson::array();
  for (const Stage stage : kStages) {
    names.push_back(std::string(to_string(stage)));
  }
  names.push_back(std::string(kDeviceStage));
  return names;
}

/// Fields by the version that brought them; those of version 1 are required without condition.
using Newer = std::map<int, OrderedJson>;

void require(OrderedJson& rule, Newer& newer, const char* key, int since) {
  (since == 1 ? rule["required"] : newer[since]).push_back(key);
}

OrderedJson described(OrderedJson property, const Text& text) {
  if (!text.may_be_empty) {
    property["minLength"] = 1;
  }
  if (*text.about != '\0') {
    property["description"] = text.about;
  }
  return property;
}

OrderedJson point_property(const PointField& field, OrderedJson property) {
  if (field.values != nullptr) {
    OrderedJson values = OrderedJson::array();
    std::string_view rest = field.values;
    for (std::size_t comma = 0; comma != std::string_view::npos; rest.remove_prefix(comma + 1)) {
      comma = rest.find(',');
      values.push_back(std::string(rest.substr(0, comma)));
      if (comma == std::string_view::npos) {
        break;
      }
    }
    property = {{"enum", std::move(values)}};
  } else if (property["type"] == "string") {
    property["minLength"] = 1;
  }
  if (field.minimum) {
    property["minimum"] = *field.minimum;
  }
  property["description"] = field.about;
  return property;
}

OrderedJson row_rule() {
  OrderedJson rule = object();
  rule["required"] = {"schema_version", "run_id"};
  OrderedJson properties;
  properties["schema_version"] = {{"enum", versions(1)}};
  properties["run_id"] = run_id();
  properties["run_id"]["description"] = "UTC start time and a hash of the command line; names the header";
  Newer newer;
  const ResultRow row;
  for_each_field(row, [&](const PointField& field, const auto& value) {
    properties[field.key] = point_property(field, type_of(value));
    require(rule, newer, field.key, field.since);
  });
  detail::for_each_row_field(row, [&](const char* key, const auto& value, int since) {
    if (properties.contains(key)) {
      return;
    }
    properties[key] = described(type_of(value), kRowTexts.at(key));
    require(rule, newer, key, since);
  });
  properties["stage"] = {{"enum", stages()}, {"description", kRowTexts.at("stage").about}};
  properties["value"]["minimum"] = 0;
  properties["samples"]["minimum"] = 0;
  properties["spread"]["minimum"] = 0;
  rule["properties"] = std::move(properties);
  OrderedJson conditions = OrderedJson::array();
  conditions.push_back(OrderedJson::parse(R"({"if": {"properties": {"status": {"const": "ok"}}},
    "then": {"properties": {"value": {"type": "number"}, "samples": {"minimum": 1}}},
    "else": {"properties": {"value": {"type": "null"}, "reason": {"minLength": 1}}}})"));
  conditions.push_back(
      OrderedJson::parse(R"({"if": {"properties": {"source": {"const": "measured"}, "unit": {"const": "s"}}},
    "then": {"properties": {"value": {"exclusiveMinimum": 0}}}})"));
  for (const auto& [since, keys] : newer) {
    conditions.push_back({{"if", {{"properties", {{"schema_version", {{"enum", versions(since)}}}}}}},
                          {"then", {{"required", keys}}}});
  }
  rule["allOf"] = std::move(conditions);
  return rule;
}

OrderedJson point_line_rule() {
  OrderedJson point = object();
  OrderedJson properties;
  Newer none;
  const RecordedPoint end;
  detail::for_each_point_field(end, [&](const char* key, const auto& value, int) {
    properties[key] = described(type_of(value), kPointTexts.at(key));
    point["required"].push_back(key);
  });
  properties["rows"]["minimum"] = 0;
  properties["elapsed_s"]["minimum"] = 0;
  point["properties"] = std::move(properties);
  OrderedJson rule = object();
  rule["required"] = {"schema_version", "run_id", "point"};
  rule["properties"] = {
      {"schema_version", {{"enum", versions(2)}}}, {"run_id", run_id()}, {"point", std::move(point)}};
  return rule;
}

/// Header and, beside it, what newer versions require of it.
std::pair<OrderedJson, Newer> header_rule() {
  OrderedJson rule = object();
  OrderedJson properties;
  Newer newer;
  const RunHeader header;
  detail::for_each_header_field(header, [&](const char* key, const auto& value, int since) {
    properties[key] = described(type_of(value), kHeaderTexts.at(key));
    require(rule, newer, key, since);
  });
  properties["started_utc"]["minLength"] = 20;
  rule["properties"] = std::move(properties);
  return {std::move(rule), std::move(newer)};
}

OrderedJson header_line_rule(const Newer& newer) {
  OrderedJson rule = object();
  rule["required"] = {"schema_version", "run_id", "header"};
  rule["properties"] = {{"schema_version", {{"enum", versions(1)}}},
                        {"run_id", run_id()},
                        {"header", {{"$ref", "#/$defs/header"}}}};
  OrderedJson conditions = OrderedJson::array();
  for (const auto& [since, keys] : newer) {
    conditions.push_back({{"if", {{"properties", {{"schema_version", {{"enum", versions(since)}}}}}}},
                          {"then", {{"properties", {{"header", {{"required", keys}}}}}}}});
  }
  rule["allOf"] = std::move(conditions);
  return rule;
}

}  // namespace

std::string result_schema_json() {
  auto [header, newer] = header_rule();
  OrderedJson schema;
  schema["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  schema["title"] = "moescope results, version " + std::to_string(kResultSchemaVersion);
  schema["description"] =
      "One line of rows.jsonl: the header of a run, one value of that run, or the end of a point of a sweep, "
      "whose rows "
      "count only with it. A property that a later version brought is required from that version on; earlier "
      "rows do "
      "not have it. run.json holds the header line alone; rows.csv holds the rows, with the properties of a "
      "row as "
      "columns in this order and empty cells for null. Written by `moescope schema result`.";
  schema["oneOf"] = {OrderedJson{{"$ref", "#/$defs/row"}}, OrderedJson{{"$ref", "#/$defs/point_line"}},
                     OrderedJson{{"$ref", "#/$defs/header_line"}}};
  schema["$defs"] = {{"row", row_rule()},
                     {"point_line", point_line_rule()},
                     {"header_line", header_line_rule(newer)},
                     {"header", std::move(header)}};
  return schema.dump(2) + "\n";
}

}  // namespace moescope
