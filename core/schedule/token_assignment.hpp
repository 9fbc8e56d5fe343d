#pragma once

#include <cstdint>

#include "core/layer/routing.hpp"
#include "core/layer/tensor.hpp"
#include "core/schedule/token_rule.hpp"

namespace moescope {

/// What FFN experts are given of a router's choice, as data that validate() can check.
struct TokenAssignment {
  TokenRule rule;
  Routing routing;                  ///< the pairs that run; gates of chosen ones as the router left them
  std::int64_t chosen_pairs = 0;    ///< of the router
  std::int64_t dropped_pairs = 0;   ///< of them do not run
  std::int64_t added_pairs = 0;     ///< run though the router did not choose them
  std::int64_t tokens_without = 0;  ///< tokens that were given experts and have none left
  std::int64_t capacity = 0;        ///< kCapacity: rows of every expert
};

/// Whether a rule looks at probabilities of pairs that were not chosen.
bool needs_probabilities(const TokenRule& rule);

/// Applies `rule`, which is not kEvery, to the router's choice.
///
/// kCapacity: an expert takes the first expert_capacity() pairs that come. First choices of all tokens come
/// first, in the order of tokens, then all second choices, and so on: GShard, arXiv 2006.16668, algorithm 1.
/// A token's first choice is its largest gate, the lower id among equals. Gates that are left stay as they
/// are.
///
/// kRounding: every expert gets rounded_tokens() tokens. Rounded down it loses those of its tokens with the
/// smallest gates; rounded up it gains those tokens that did not choose it and give it most: token rounding,
/// arXiv 2512.14080, section 5, as benchmarks/moe-token-rounding.py of its authors (the lower token among
/// equals). An added pair's gate is its probability.
///
/// `probabilities` [L, N] fp32: softmax of the router's logits over all experts; null where nothing is known
/// but the choice, which is enough for needs_probabilities() == false. Throws InvalidArgument("schedule",
/// ...) where it is not.
TokenAssignment assign_tokens(const Routing& chosen, const TokenRule& rule, const HostTensor* probabilities);

/// Checks every invariant against the choice it was made of and throws InternalError with the first
/// violation: pairs that run are chosen with the same gate or added with their probability, counts of every
/// expert are the rule's, nothing dropped comes before anything kept. Without `probabilities` it does not
/// look at which pairs were added, only at how many.
void validate(const TokenAssignment& assignment, const Routing& chosen, const HostTensor* probabilities);

/// Rows of experts' products that grouped products execute: whole tiles of every expert, under a capacity all
/// rows of all experts.
std::int64_t executed_rows(const Routing& routing, std::int64_t tile);
std::int64_t executed_rows(const TokenAssignment& assignment);

}  // namespace moescope
