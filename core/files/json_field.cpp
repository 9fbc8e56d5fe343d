#include "core/files/json_field.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"

namespace moescope {

JsonField::JsonField(const nlohmann::json& document, std::string_view file) : JsonField(document, file, "") {
  require(document.is_object(), "must be an object");
}

JsonField::JsonField(const nlohmann::json& value, std::string_view file, std::string path)
    : value_(value), file_(file), path_(std::move(path)) {}

JsonField JsonField::member(std::string_view key) const {
  const nlohmann::json& object = require(value_.get().is_object(), "must be an object");
  std::string path = fmt::format("{}{}{}", path_, path_.empty() ? "" : ".", detail::printable(key));
  const auto found = object.find(key);
  if (found == object.end()) {
    throw FileError(file_, path, "missing");
  }
  return {*found, file_, std::move(path)};
}

bool JsonField::has(std::string_view key) const {
  return require(value_.get().is_object(), "must be an object").contains(key);
}

std::vector<std::pair<std::string, JsonField>> JsonField::members() const {
  std::vector<std::pair<std::string, JsonField>> members;
  for (const auto& [key, value] : require(value_.get().is_object(), "must be an object").items()) {
    members.emplace_back(key, member(key));
  }
  return members;
}

std::vector<JsonField> JsonField::elements() const {
  std::vector<JsonField> elements;
  for (const nlohmann::json& value : require(value_.get().is_array(), "must be a list")) {
    elements.push_back({value, file_, fmt::format("{}[{}]", path_, elements.size())});
  }
  return elements;
}

std::string JsonField::text() const {
  return require(value_.get().is_string(), "must be a text").get<std::string>();
}

std::vector<std::string> JsonField::texts() const {
  std::vector<std::string> texts;
  for (const JsonField& element : elements()) {
    texts.push_back(element.text());
  }
  return texts;
}

bool JsonField::boolean() const {
  return require(value_.get().is_boolean(), "must be true or false").get<bool>();
}

double JsonField::number() const {
  return require(value_.get().is_number(), "must be a number").get<double>();
}

std::int64_t JsonField::integer(std::int64_t low, std::int64_t high) const {
  const nlohmann::json& value = value_;
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || std::in_range<std::int64_t>(value.get<std::uint64_t>()));
  require(fits, "must be a whole number");
  const auto number = value.get<std::int64_t>();
  require(number >= low && number <= high, fmt::format("must be in [{}, {}]", low, high));
  return number;
}

std::map<std::string, double> JsonField::numbers() const {
  std::map<std::string, double> numbers;
  for (const auto& [key, value] : members()) {
    numbers.emplace(key, value.number());
  }
  return numbers;
}

void JsonField::fail(std::string_view requirement) const {
  throw FileError(file_, path_, fmt::format("{}: {}", shown(value_.get()), requirement));
}

const nlohmann::json& JsonField::require(bool holds, std::string_view requirement) const {
  if (!holds) {
    fail(requirement);
  }
  return value_;
}

}  // namespace moescope
