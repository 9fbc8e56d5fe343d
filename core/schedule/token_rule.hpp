#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moescope {

/// Rows that grouped products take at once (kernels/contract/grouped_gemm.hpp): an expert's last tile is
/// filled up to it. SonicMoE's default as well.
inline constexpr std::int64_t kGroupedTile = 128;

/// Which of the router's pairs FFN experts are given.
enum class TokenRuleKind : std::uint8_t {
  kEvery,     ///< all of them: dropless
  kCapacity,  ///< an expert takes so many and no more, and runs as many rows whatever it got
  kRounding,  ///< as many as fill whole tiles
};

/// Where a number of tokens between two multiples of the tile goes.
enum class RoundTo : std::uint8_t { kNearest, kUp, kDown };

/// What stands between the router and grouped products of FFN experts.
struct TokenRule {
  TokenRuleKind kind = TokenRuleKind::kEvery;
  double capacity_factor = 0;            ///< kCapacity: > 0
  RoundTo round_to = RoundTo::kNearest;  ///< kRounding
  std::int64_t tile = kGroupedTile;      ///< kRounding: rows of a tile

  bool every() const { return kind == TokenRuleKind::kEvery; }

  friend bool operator==(const TokenRule&, const TokenRule&) = default;
};

/// As rows and the command line name it: "padded:1.25", "token_rounding", "token_rounding:down",
/// "token_rounding:nearest:64"; empty for every pair.
std::string to_string(const TokenRule& rule);
/// Inverse; nothing for a text that names no rule. Throws InvalidArgument("schedule", ...) for one that names
/// a rule and then something it cannot be.
std::optional<TokenRule> parse_token_rule(std::string_view text);

/// ceil(factor * pairs / experts), the most that an expert takes of `num_pairs` pairs; no more than there are
/// tokens, because a token comes to an expert once. GShard, arXiv 2006.16668, section 2.2; the sum of both is
/// in floating point, left to right.
std::int64_t expert_capacity(double factor, std::int64_t num_pairs, std::int64_t num_experts,
                             std::int64_t num_tokens);
/// What `count` tokens are rounded to; halves of a tile to the even multiple, as torch.round; no more than
/// there are tokens.
std::int64_t rounded_tokens(const TokenRule& rule, std::int64_t count, std::int64_t num_tokens);

}  // namespace moescope
