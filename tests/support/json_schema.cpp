#include "tests/support/json_schema.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validation_results.hpp>
#include <valijson/validator.hpp>

namespace moescope::test {
namespace {

using Json = JsonSchema::Json;
using Adapter = valijson::adapters::NlohmannJsonAdapter;

constexpr std::array<std::string_view, 22> kKeywords = {"$schema",  "title",      "description",
                                                        "$defs",    "$ref",       "type",
                                                        "const",    "enum",       "minimum",
                                                        "required", "minLength",  "exclusiveMinimum",
                                                        "items",    "oneOf",      "allOf",
                                                        "minItems", "if",         "then",
                                                        "else",     "properties", "additionalProperties",
                                                        "$id"};

/// Keywords of a schema and of those within it. Beside $ref draft 7 reads nothing.
void require_known(const Json& schema) {
  if (!schema.is_object()) {
    return;
  }
  for (const auto& [keyword, rule] : schema.items()) {
    if (std::ranges::find(kKeywords, keyword) == kKeywords.end()) {
      throw std::logic_error("schema: unknown keyword " + keyword);
    }
    if (schema.contains("$ref") && keyword != "$ref" && keyword != "description") {
      throw std::logic_error("schema: " + keyword + " beside $ref");
    }
    if (keyword == "properties" || keyword == "$defs") {
      for (const auto& [name, member] : rule.items()) {
        require_known(member);
      }
    } else if (keyword == "allOf" || keyword == "oneOf") {
      std::ranges::for_each(rule, require_known);
    } else if (keyword == "items" || keyword == "additionalProperties" || keyword == "if" ||
               keyword == "then" || keyword == "else") {
      require_known(rule);
    }
  }
}

}  // namespace

struct JsonSchema::Parsed {
  Json root;
  valijson::Schema schema;
};

JsonSchema::JsonSchema(Json root) : parsed_(std::make_unique<Parsed>()) {
  require_known(root);
  parsed_->root = std::move(root);
  valijson::SchemaParser(valijson::SchemaParser::kDraft7)
      .populateSchema(Adapter(parsed_->root), parsed_->schema);
}
JsonSchema::~JsonSchema() = default;
JsonSchema::JsonSchema(JsonSchema&&) noexcept = default;
JsonSchema& JsonSchema::operator=(JsonSchema&&) noexcept = default;

std::string JsonSchema::violation(const Json& value) const {
  valijson::ValidationResults results;
  valijson::Validator validator(valijson::Validator::kStrongTypes);
  if (validator.validate(parsed_->schema, Adapter(value), &results)) {
    return {};
  }
  std::string text;
  valijson::ValidationResults::Error error;
  while (results.popError(error)) {
    for (const std::string& step : error.context) {
      text += step;
    }
    text += ": " + error.description + "; ";
  }
  return text.empty() ? "is not valid" : text;
}

}  // namespace moescope::test
