#include "core/files/json_text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/files/file_bytes.hpp"

namespace moescope {
namespace {

/// Builds a document from the parser's events. (The library's own builder takes the last of equal keys, and
/// with a callback it looks through an object again for every member.)
template <class Json>
class Builder {
 public:
  Builder(std::string_view text, const JsonPlace& place) : text_(text), place_(place) {}

  Json take() { return std::move(root_); }

  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(std::int64_t value) { return add(value); }
  bool number_unsigned(std::uint64_t value) { return add(value); }
  bool number_float(double value, const std::string& /*digits*/) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(typename Json::binary_t& /*value*/) { return false; }  // JSON has none

  bool start_object(std::size_t /*size*/) { return open(Json::value_t::object); }
  bool start_array(std::size_t /*size*/) { return open(Json::value_t::array); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& name) {
    Level& level = levels_.back();
    auto& object = level.value->template get_ref<typename Json::object_t&>();
    bool is_new = false;
    if constexpr (std::is_same_v<Json, nlohmann::ordered_json>) {
      is_new = level.keys.insert(name).second;
      if (is_new) {
        // Past ordered_map's own emplace(), which looks through all keys.
        auto& [key, value] =
            static_cast<typename Json::object_t::Container&>(object).emplace_back(std::move(name), nullptr);
        level.key = &key;
        level.next = &value;
      }
    } else {
      const auto [member, inserted] = object.emplace(std::move(name), nullptr);
      is_new = inserted;
      level.key = &member->first;
      level.next = &member->second;
    }
    if (!is_new) {
      const std::string& twice = std::is_same_v<Json, nlohmann::ordered_json> ? name : *level.key;
      fail(path(levels_.size() - 1), fmt::format("key '{}' stands there twice", detail::printable(twice)));
    }
    return true;
  }

  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const nlohmann::json::exception& error) {
    fail_syntax(position, error.what());
    return false;
  }

 private:
  /// An object or list that has begun. Nothing here moves while it is read: only complete values have younger
  /// siblings.
  struct Level {
    Json* value;
    const std::string* key = nullptr;      ///< of the member that is read
    Json* next = nullptr;                  ///< where its value goes
    std::unordered_set<std::string> keys;  ///< so far, for a Json that cannot look them up
  };

  template <class Value>
  bool add(Value&& value) {
    (void)place_value(Json(std::forward<Value>(value)));
    return true;
  }

  /// Puts a value where the document has come to.
  Json& place_value(Json value) {
    if (levels_.empty()) {
      root_ = std::move(value);
      return root_;
    }
    Level& level = levels_.back();
    if (level.value->is_array()) {
      return level.value->template get_ref<typename Json::array_t&>().emplace_back(std::move(value));
    }
    *level.next = std::move(value);
    return *level.next;
  }

  bool open(typename Json::value_t kind) {
    if (levels_.size() == static_cast<std::size_t>(kMostJsonLevels)) {
      fail(path(levels_.size()), fmt::format("nests deeper than {} levels", kMostJsonLevels));
    }
    Json& value = place_value(Json(kind));
    levels_.push_back({&value, nullptr, nullptr, {}});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  /// "values.num_sms.value[3]": the member that the outermost `count` levels stand at.
  std::string path(std::size_t count) const {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) {
      const Level& level = levels_[i];
      if (level.value->is_array()) {
        const bool inside = i + 1 < levels_.size();  // of its last element; else before the next one
        text += fmt::format("[{}]", level.value->size() - (inside ? 1 : 0));
      } else {
        text += fmt::format("{}{}", text.empty() ? "" : ".", detail::printable(*level.key));
      }
    }
    return text;
  }

  [[noreturn]] void fail(std::string_view where, std::string_view what) const {
    const std::string_view between = place_.within.empty() || where.empty() ? "" : ": ";
    throw FileError(place_.file, fmt::format("{}{}{}", place_.within, between, where), what);
  }

  /// `position`: bytes read when the parser gave up.
  [[noreturn]] void fail_syntax(std::size_t position, std::string_view message) const {
    const std::string_view before = text_.substr(0, position == 0 ? 0 : position - 1);
    const std::size_t line = 1 + static_cast<std::size_t>(std::ranges::count(before, '\n'));
    const std::size_t column = before.size() - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0
    // "[json.exception.parse_error.101] parse error at line 1, column 3: syntax error while ..."
    const std::size_t start = message.find("column");
    const std::size_t colon = message.find(": ", start == std::string_view::npos ? 0 : start);
    const std::size_t bracket = message.find("] ");
    message.remove_prefix(start != std::string_view::npos && colon != std::string_view::npos ? colon + 2
                          : bracket != std::string_view::npos                                ? bracket + 2
                                                                                             : 0);
    const std::string_view word = word_at(before.size());
    const bool no_number = word == "NaN" || word == "nan" || word == "Infinity" || word == "inf" ||
                           word == "Inf" || word == "INF" || word == "NAN";
    fail(place_.within.empty() ? fmt::format("line {}, column {}", line, column)
                               : fmt::format("column {}", column),
         fmt::format("not valid JSON: {}{}", no_number ? fmt::format("{} is no number; ", word) : "",
                     detail::printable(message, 200)));
  }

  /// The letters around a place.
  std::string_view word_at(std::size_t at) const {
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    std::size_t first = std::min(at, text_.size());
    while (first > 0 && letter(text_[first - 1])) {
      --first;
    }
    std::size_t last = std::min(at, text_.size());
    while (last < text_.size() && letter(text_[last])) {
      ++last;
    }
    return text_.substr(first, last - first);
  }

  std::string_view text_;
  const JsonPlace& place_;
  Json root_;
  std::vector<Level> levels_;
};

}  // namespace

template <class Json>
Json parse_json(std::string_view text, const JsonPlace& place) {
  Builder<Json> builder(text, place);
  (void)Json::sax_parse(text.begin(), text.end(), &builder);
  return builder.take();
}

template nlohmann::json parse_json(std::string_view text, const JsonPlace& place);
template nlohmann::ordered_json parse_json(std::string_view text, const JsonPlace& place);

template <class Json>
std::string shown(const Json& value) {
  return detail::printable(value.dump(-1, ' ', true, Json::error_handler_t::replace));
}

template std::string shown(const nlohmann::json& value);
template std::string shown(const nlohmann::ordered_json& value);

}  // namespace moescope
