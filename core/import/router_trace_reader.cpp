// RouterTrace JSON: {"selections": [tokens][layers][K], "layers": .., "expertsPerLayer": ..}.
#include <fmt/format.h>

#include "core/base/error.hpp"
#include "core/files/json_field.hpp"
#include "core/files/json_text.hpp"
#include "core/files/regular_file.hpp"
#include "core/import/reader.hpp"

namespace moescope::detail {
bool is_router_trace(const ImportSource& source) {
  return source.head.find_first_not_of(" \t\r\n") != std::string::npos &&
         source.head[source.head.find_first_not_of(" \t\r\n")] == '{' &&
         source.head.find("\"selections\"") != std::string::npos;
}

RawRouting parse_router_trace(const ImportSource& source, std::string_view text) {
  const auto document = parse_json<nlohmann::json>(text, {source.path, ""});
  const JsonField root(document, source.path);
  RawRouting routing;
  // [tokens][layers][K] in the file.
  std::vector<std::int64_t> by_token;
  for (const JsonField& token : root.member("selections").elements()) {
    const std::vector<JsonField> layers = token.elements();
    if (routing.num_tokens == 0) {
      routing.num_layers = std::ssize(layers);
      routing.top_k = layers.empty() ? 0 : std::ssize(layers.front().elements());
    }
    if (std::ssize(layers) != routing.num_layers || layers.empty()) {
      token.fail(fmt::format("must be a list of {} layers, as for the first token", routing.num_layers));
    }
    for (const JsonField& layer : layers) {
      const std::vector<JsonField> ids = layer.elements();
      if (std::ssize(ids) != routing.top_k || ids.empty()) {
        layer.fail(fmt::format("must be {} experts, as in the first list", routing.top_k));
      }
      for (const JsonField& id : ids) {
        by_token.push_back(id.integer(-kLimit, kLimit - 1));
      }
    }
    ++routing.num_tokens;
  }
  if (routing.num_tokens == 0) {
    root.member("selections").fail("must hold a token");
  }
  if (root.has("layers") && root.member("layers").integer(1, kLimit - 1) != routing.num_layers) {
    root.member("layers").fail(fmt::format("selections have {}", routing.num_layers));
  }
  if (root.has("expertsPerLayer")) {
    routing.num_experts = root.member("expertsPerLayer").integer(1, kLimit - 1);
  }
  const std::int64_t k = routing.top_k;
  for (std::int64_t layer = 0; layer < routing.num_layers; ++layer) {
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      const auto first = by_token.begin() + (token * routing.num_layers + layer) * k;
      routing.ids.insert(routing.ids.end(), first, first + k);
    }
  }
  routing.notes.push_back(fmt::format("RouterTrace: selections are [tokens {}][layers {}][K {}]",
                                      routing.num_tokens, routing.num_layers, k));
  return routing;
}

RawRouting read_router_trace(const ImportSource& source, const ImportOptions& /*options*/) {
  return parse_router_trace(source, read_text(source.file, kMostRowsBytes));
}

}  // namespace moescope::detail
