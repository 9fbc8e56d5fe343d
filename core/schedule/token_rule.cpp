#include "core/schedule/token_rule.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.hpp"
#include "core/base/number_text.hpp"

namespace moescope {
namespace {

constexpr std::string_view kPadded = "padded";
constexpr std::string_view kRounding = "token_rounding";
constexpr double kMostFactor = 1e6;
constexpr std::int64_t kMostTile = std::int64_t{1} << 20;

std::string_view name_of(RoundTo to) {
  return to == RoundTo::kNearest ? "nearest" : to == RoundTo::kUp ? "up" : "down";
}

std::vector<std::string_view> parts_of(std::string_view text) {
  std::vector<std::string_view> parts;
  while (true) {
    const auto colon = text.find(':');
    parts.push_back(text.substr(0, colon));
    if (colon == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(colon + 1);
  }
}

}  // namespace

std::string to_string(const TokenRule& rule) {
  switch (rule.kind) {
    case TokenRuleKind::kEvery:
      return {};
    case TokenRuleKind::kCapacity:
      return fmt::format("{}:{}", kPadded, rule.capacity_factor);
    case TokenRuleKind::kRounding:
      break;
  }
  if (rule.tile != kGroupedTile) {
    return fmt::format("{}:{}:{}", kRounding, name_of(rule.round_to), rule.tile);
  }
  return rule.round_to == RoundTo::kNearest ? std::string(kRounding)
                                            : fmt::format("{}:{}", kRounding, name_of(rule.round_to));
}

std::optional<TokenRule> parse_token_rule(std::string_view text) {
  const std::vector<std::string_view> parts = parts_of(text);
  if (parts.front() == kPadded) {
    const auto factor = parts.size() == 2 ? parse_number<double>(parts[1]) : std::nullopt;
    if (!factor || !(*factor > 0) || *factor > kMostFactor) {
      throw InvalidArgument(
          "schedule", text,
          "must be padded:CAPACITY, the capacity factor above 0 and up to 1e6, e.g. padded:1.25");
    }
    return TokenRule{.kind = TokenRuleKind::kCapacity, .capacity_factor = *factor};
  }
  if (parts.front() != kRounding) {
    return std::nullopt;
  }
  TokenRule rule{.kind = TokenRuleKind::kRounding};
  bool valid = parts.size() <= 3;
  if (valid && parts.size() > 1) {
    valid = false;
    for (const RoundTo to : {RoundTo::kNearest, RoundTo::kUp, RoundTo::kDown}) {
      if (parts[1] == name_of(to)) {
        rule.round_to = to;
        valid = true;
      }
    }
  }
  if (valid && parts.size() > 2) {
    const auto tile = parse_number<std::int64_t>(parts[2]);
    valid = tile && *tile >= 1 && *tile <= kMostTile;
    rule.tile = tile.value_or(0);
  }
  if (!valid) {
    throw InvalidArgument(
        "schedule", text,
        fmt::format("must be token_rounding[:nearest|up|down[:TILE]], TILE from 1 to {} rows", kMostTile));
  }
  return rule;
}

std::int64_t expert_capacity(double factor, std::int64_t num_pairs, std::int64_t num_experts,
                             std::int64_t num_tokens) {
  const double rows = std::ceil(factor * static_cast<double>(num_pairs) / static_cast<double>(num_experts));
  return static_cast<std::int64_t>(std::min(rows, static_cast<double>(num_tokens)));
}

std::int64_t rounded_tokens(const TokenRule& rule, std::int64_t count, std::int64_t num_tokens) {
  const std::int64_t whole = count / rule.tile;
  const std::int64_t rest = count % rule.tile;
  bool up = rest > 0 && rule.round_to == RoundTo::kUp;
  if (rule.round_to == RoundTo::kNearest) {
    up = 2 * rest > rule.tile || (2 * rest == rule.tile && whole % 2 == 1);
  }
  return std::min((whole + (up ? 1 : 0)) * rule.tile, num_tokens);
}

}  // namespace moescope
