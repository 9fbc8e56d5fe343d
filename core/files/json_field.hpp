#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/files/json_text.hpp"

namespace moescope {

/// A value inside a JSON document, with the file and the members that lead to it: every complaint names them.
/// All functions throw FileError, "FILE: fits[3].stretch: null: must be a number". The document must outlive
/// it.
class JsonField {
 public:
  /// The document itself, which must be an object. `file` must outlive it.
  JsonField(const nlohmann::json& document, std::string_view file);

  /// Refuses an absent one.
  JsonField member(std::string_view key) const;
  bool has(std::string_view key) const;
  /// Of an object, in the order of keys, with the keys.
  std::vector<std::pair<std::string, JsonField>> members() const;
  /// Of a list.
  std::vector<JsonField> elements() const;

  std::string text() const;
  std::vector<std::string> texts() const;
  bool boolean() const;
  bool is_null() const { return value_.get().is_null(); }
  double number() const;
  /// In [low, high].
  std::int64_t integer(std::int64_t low = std::numeric_limits<std::int64_t>::min(),
                       std::int64_t high = std::numeric_limits<std::int64_t>::max()) const;
  /// Key to number.
  std::map<std::string, double> numbers() const;

  /// The file as messages name it.
  std::string_view file() const { return file_; }

  /// Throws: this value is not what `requirement` says.
  [[noreturn]] void fail(std::string_view requirement) const;

 private:
  JsonField(const nlohmann::json& value, std::string_view file, std::string path);
  const nlohmann::json& require(bool holds, std::string_view requirement) const;

  std::reference_wrapper<const nlohmann::json> value_;
  std::string_view file_;
  std::string path_;
};

}  // namespace moescope
