#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

namespace moescope::test {

/// Checks JSON against our schema files by valijson, of whose drafts the last is 7: what the files use of
/// 2020-12 means the same there. A keyword that this does not hold for is refused, so that the schema cannot
/// outgrow the check.
class JsonSchema {
 public:
  using Json = nlohmann::json;

  /// Throws std::logic_error for a keyword that was not looked at.
  explicit JsonSchema(Json root);
  ~JsonSchema();
  JsonSchema(JsonSchema&&) noexcept;
  JsonSchema& operator=(JsonSchema&&) noexcept;

  /// Empty when `value` is valid, else where and why not.
  std::string violation(const Json& value) const;

 private:
  struct Parsed;
  std::unique_ptr<Parsed> parsed_;
};

}  // namespace moescope::test
