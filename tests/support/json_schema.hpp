#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace moescope::test {

/// Checks JSON against the part of JSON Schema (draft 2020-12) that our schema files use. Everything
/// it demands comes from the schema; a keyword it does not know is an error, so that the schema cannot
/// outgrow the check.
class JsonSchema {
 public:
  using Json = nlohmann::json;

  explicit JsonSchema(Json root) : root_(std::move(root)) {}

  /// Empty when `value` is valid, else where and why not.
  std::string violation(const Json& value) const { return check(root_, value, "$"); }

 private:
  static bool has_type(const std::string& type, const Json& value) {
    if (type == "array") return value.is_array();
    if (type == "object") return value.is_object();
    if (type == "string") return value.is_string();
    if (type == "integer") return value.is_number_integer();
    if (type == "number") return value.is_number();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    throw std::logic_error("schema: unknown type " + type);
  }

  std::string check(const Json& schema, const Json& value, const std::string& at) const {
    for (const auto& [keyword, rule] : schema.items()) {
      std::string error = check_keyword(schema, keyword, rule, value, at);
      if (!error.empty()) {
        return error;
      }
    }
    return {};
  }

  std::string check_keyword(const Json& schema, const std::string& keyword, const Json& rule,
                            const Json& value, const std::string& at) const {
    const auto fail_unless = [&](bool holds) {
      return holds ? std::string() : at + " = " + value.dump() + " violates " + keyword + " " + rule.dump();
    };
    if (keyword == "$schema" || keyword == "title" || keyword == "description" || keyword == "$defs" ||
        keyword == "then" || keyword == "else") {
      return {};
    }
    if (keyword == "$ref") {
      return check(root_.at(Json::json_pointer(rule.get<std::string>().substr(1))), value, at);
    }
    if (keyword == "type") {
      bool any = false;
      for (const Json& type : rule.is_array() ? rule : Json::array({rule})) {
        any = any || has_type(type.get<std::string>(), value);
      }
      return fail_unless(any);
    }
    if (keyword == "const") return fail_unless(value == rule);
    if (keyword == "enum") return fail_unless(std::find(rule.begin(), rule.end(), value) != rule.end());
    if (keyword == "minimum")
      return fail_unless(!value.is_number() || value.get<double>() >= rule.get<double>());
    if (keyword == "exclusiveMinimum")
      return fail_unless(!value.is_number() || value.get<double>() > rule.get<double>());
    if (keyword == "minLength") {
      return fail_unless(!value.is_string() || value.get<std::string>().size() >= rule.get<std::size_t>());
    }
    if (keyword == "required") return check_required(rule, value, at);
    if (keyword == "properties" || keyword == "additionalProperties")
      return check_properties(schema, keyword, value, at);
    if (keyword == "minItems")
      return fail_unless(!value.is_array() || value.size() >= rule.get<std::size_t>());
    if (keyword == "items") return check_items(rule, value, at);
    if (keyword == "allOf") return check_all_of(rule, value, at);
    if (keyword == "oneOf") return check_one_of(rule, value, at);
    if (keyword == "if") {
      const char* branch = check(rule, value, at).empty() ? "then" : "else";
      return schema.contains(branch) ? check(schema[branch], value, at) : std::string();
    }
    throw std::logic_error("schema: unknown keyword " + keyword);
  }

  static std::string check_required(const Json& rule, const Json& value, const std::string& at) {
    for (const Json& key : rule) {
      if (value.is_object() && !value.contains(key.get<std::string>())) {
        return at + " lacks " + key.dump();
      }
    }
    return {};
  }

  std::string check_properties(const Json& schema, const std::string& keyword, const Json& value,
                               const std::string& at) const {
    if (!value.is_object()) {
      return {};
    }
    const Json known = schema.value("properties", Json::object());
    for (const auto& [key, member] : value.items()) {
      const bool listed = known.contains(key);
      std::string error;
      if (keyword == "properties" && listed) {
        error = check(known[key], member, at + "." + key);
      } else if (keyword == "additionalProperties" && !listed) {
        const Json& rule = schema[keyword];
        error = rule.is_boolean() ? (rule.get<bool>() ? "" : at + " has the unknown key " + key)
                                  : check(rule, member, at + "." + key);
      }
      if (!error.empty()) {
        return error;
      }
    }
    return {};
  }

  std::string check_items(const Json& rule, const Json& value, const std::string& at) const {
    for (std::size_t i = 0; value.is_array() && i < value.size(); ++i) {
      std::string error = check(rule, value[i], at + "[" + std::to_string(i) + "]");
      if (!error.empty()) {
        return error;
      }
    }
    return {};
  }

  std::string check_all_of(const Json& rule, const Json& value, const std::string& at) const {
    for (const Json& part : rule) {
      std::string error = check(part, value, at);
      if (!error.empty()) {
        return error;
      }
    }
    return {};
  }

  std::string check_one_of(const Json& rule, const Json& value, const std::string& at) const {
    std::string errors;
    int valid = 0;
    for (const Json& option : rule) {
      const std::string error = check(option, value, at);
      valid += error.empty() ? 1 : 0;
      errors += error.empty() ? "" : error + "; ";
    }
    return valid == 1 ? std::string() : at + ": " + std::to_string(valid) + " of oneOf hold: " + errors;
  }

  Json root_;
};

}  // namespace moescope::test
