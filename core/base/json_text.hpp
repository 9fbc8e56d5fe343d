#pragma once

#include <nlohmann/json.hpp>
#include <string_view>

namespace moescope::detail {

/// Parses text that may be anything; discarded (`is_discarded()`) when it is no JSON or is nested deeper than
/// any file of ours, which would cost stack when it is written into a message.
template <class Json>
Json parse_json(std::string_view text) {
  constexpr int kMaxDepth = 8;
  bool too_deep = false;
  Json json = Json::parse(
      text,
      [&](int depth, typename Json::parse_event_t, Json&) {
        too_deep = too_deep || depth > kMaxDepth;
        return !too_deep;
      },
      false);
  return too_deep ? Json(Json::value_t::discarded) : json;
}

}  // namespace moescope::detail
