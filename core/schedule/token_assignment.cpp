#include "core/schedule/token_assignment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <vector>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// A pair that the router did not choose.
struct AddedPair {
  std::int32_t token = 0;
  std::int32_t expert = 0;
  float gate = 0;
};

/// Tokens that chose each expert, as pairs of the routing, tokens ascending.
class PairsOfExperts {
 public:
  explicit PairsOfExperts(const Routing& routing)
      : begin_(static_cast<std::size_t>(routing.num_experts()) + 1, 0),
        pairs_(routing.expert_ids.size()),
        tokens_(routing.expert_ids.size()) {
    for (const std::int32_t expert : routing.expert_ids) {
      ++begin_[static_cast<std::size_t>(expert) + 1];
    }
    std::partial_sum(begin_.begin(), begin_.end(), begin_.begin());
    std::vector<std::int64_t> next(begin_.begin(), begin_.end() - 1);
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      for (std::int64_t p = routing.token_offsets[token]; p < routing.token_offsets[token + 1]; ++p) {
        pairs_[next[routing.expert_ids[p]]++] = p;
        tokens_[p] = static_cast<std::int32_t>(token);
      }
    }
  }

  std::span<const std::int64_t> of(std::int64_t expert) const {
    return std::span(pairs_).subspan(static_cast<std::size_t>(begin_[expert]),
                                     static_cast<std::size_t>(begin_[expert + 1] - begin_[expert]));
  }
  std::int32_t token(std::int64_t pair) const { return tokens_[pair]; }

 private:
  std::vector<std::int64_t> begin_;   ///< [N + 1]
  std::vector<std::int64_t> pairs_;   ///< [M] by expert
  std::vector<std::int32_t> tokens_;  ///< [M] of the pairs
};

/// Which choice of its token each pair is: 0 for the largest gate.
std::vector<std::int32_t> choice_of_pairs(const Routing& routing) {
  std::vector<std::int32_t> choice(routing.expert_ids.size());
  std::vector<std::int64_t> order;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    order.resize(static_cast<std::size_t>(routing.token_offsets[token + 1] - routing.token_offsets[token]));
    std::iota(order.begin(), order.end(), routing.token_offsets[token]);
    std::ranges::stable_sort(
        order, [&](std::int64_t a, std::int64_t b) { return routing.gates[a] > routing.gates[b]; });
    for (std::size_t k = 0; k < order.size(); ++k) {
      choice[order[k]] = static_cast<std::int32_t>(k);
    }
  }
  return choice;
}

std::vector<bool> within_capacity(const Routing& chosen, std::int64_t capacity) {
  const std::vector<std::int32_t> choice = choice_of_pairs(chosen);
  std::vector<std::vector<std::int64_t>> by_choice;
  for (std::size_t pair = 0; pair < choice.size(); ++pair) {
    by_choice.resize(std::max(by_choice.size(), static_cast<std::size_t>(choice[pair]) + 1));
    by_choice[choice[pair]].push_back(static_cast<std::int64_t>(pair));
  }
  std::vector<bool> kept(choice.size(), false);
  std::vector<std::int64_t> taken(static_cast<std::size_t>(chosen.num_experts()), 0);
  for (const std::vector<std::int64_t>& pairs : by_choice) {
    for (const std::int64_t pair : pairs) {
      std::int64_t& of_expert = taken[chosen.expert_ids[pair]];
      if (of_expert < capacity) {
        ++of_expert;
        kept[pair] = true;
      }
    }
  }
  return kept;
}

/// The tokens that did not choose `expert` and give it most.
void add_most_probable(const PairsOfExperts& pairs, std::int64_t expert, std::int64_t count,
                       const MatrixView<const float>& probabilities, std::vector<AddedPair>& added) {
  std::vector<AddedPair> others;
  const auto own = pairs.of(expert);
  auto next = own.begin();
  for (std::int64_t token = 0; token < probabilities.rows; ++token) {
    if (next != own.end() && pairs.token(*next) == token) {
      ++next;
      continue;
    }
    others.push_back({static_cast<std::int32_t>(token), static_cast<std::int32_t>(expert),
                      probabilities.row(token)[expert]});
  }
  const auto before = [](const AddedPair& a, const AddedPair& b) {
    return a.gate != b.gate ? a.gate > b.gate : a.token < b.token;
  };
  std::ranges::partial_sort(others, others.begin() + count, before);
  added.insert(added.end(), others.begin(), others.begin() + count);
}

struct Rounded {
  std::vector<bool> kept;
  std::vector<AddedPair> added;
};

Rounded round_experts(const Routing& chosen, const TokenRule& rule, const HostTensor* probabilities) {
  const PairsOfExperts pairs(chosen);
  Rounded rounded{std::vector<bool>(chosen.expert_ids.size(), true), {}};
  for (std::int64_t expert = 0; expert < chosen.num_experts(); ++expert) {
    const auto own = pairs.of(expert);
    const std::int64_t count = rounded_tokens(rule, std::ssize(own), chosen.num_tokens);
    if (count > std::ssize(own)) {
      add_most_probable(pairs, expert, count - std::ssize(own), probabilities->f32(), rounded.added);
      continue;
    }
    std::vector<std::int64_t> order(own.begin(), own.end());
    std::ranges::stable_sort(
        order, [&](std::int64_t a, std::int64_t b) { return chosen.gates[a] > chosen.gates[b]; });
    for (auto dropped = order.begin() + count; dropped != order.end(); ++dropped) {
      rounded.kept[*dropped] = false;
    }
  }
  std::ranges::sort(rounded.added, [](const AddedPair& a, const AddedPair& b) {
    return a.token != b.token ? a.token < b.token : a.expert < b.expert;
  });
  return rounded;
}

/// Kept and added pairs as a routing, and what became of the others.
TokenAssignment assemble(const Routing& chosen, const TokenRule& rule, const std::vector<bool>& kept,
                         std::span<const AddedPair> added) {
  TokenAssignment assignment;
  assignment.rule = rule;
  assignment.chosen_pairs = chosen.num_pairs();
  assignment.added_pairs = std::ssize(added);
  Routing& routing = assignment.routing;
  routing.num_tokens = chosen.num_tokens;
  routing.grid_rows = chosen.grid_rows;
  routing.grid_cols = chosen.grid_cols;
  routing.token_offsets.push_back(0);
  auto next = added.begin();
  const auto append = [&routing](std::int32_t expert, float gate) {
    routing.expert_ids.push_back(expert);
    routing.gates.push_back(gate);
  };
  for (std::int64_t token = 0; token < chosen.num_tokens; ++token) {
    const auto add_before = [&](std::int64_t expert) {
      for (; next != added.end() && next->token == token && next->expert < expert; ++next) {
        append(next->expert, next->gate);
      }
    };
    for (std::int64_t p = chosen.token_offsets[token]; p < chosen.token_offsets[token + 1]; ++p) {
      add_before(chosen.expert_ids[p]);
      if (kept[p]) {
        append(chosen.expert_ids[p], chosen.gates[p]);
      } else {
        ++assignment.dropped_pairs;
      }
    }
    add_before(chosen.num_experts());
    routing.token_offsets.push_back(routing.num_pairs());
    const bool had = chosen.token_offsets[token + 1] > chosen.token_offsets[token];
    assignment.tokens_without += had && routing.num_pairs() == *(routing.token_offsets.end() - 2) ? 1 : 0;
  }
  return assignment;
}

void require_probabilities(const Routing& chosen, const TokenRule& rule, const HostTensor* probabilities) {
  if (!needs_probabilities(rule)) {
    return;
  }
  if (probabilities == nullptr) {
    throw InvalidArgument("schedule", to_string(rule),
                          "adds tokens by the router's probabilities, which a fixed routing has not; "
                          "token_rounding:down needs the recorded gates alone");
  }
  if (probabilities->dtype() != Dtype::kF32 || probabilities->rows() != chosen.num_tokens ||
      probabilities->cols() != chosen.num_experts()) {
    throw InvalidArgument("probabilities",
                          fmt::format("[{}, {}]", probabilities->rows(), probabilities->cols()),
                          fmt::format("must be [{}, {}] fp32", chosen.num_tokens, chosen.num_experts()));
  }
}

}  // namespace

bool needs_probabilities(const TokenRule& rule) {
  return rule.kind == TokenRuleKind::kRounding && rule.round_to != RoundTo::kDown;
}

TokenAssignment assign_tokens(const Routing& chosen, const TokenRule& rule, const HostTensor* probabilities) {
  require_probabilities(chosen, rule, probabilities);
  switch (rule.kind) {
    case TokenRuleKind::kEvery:
      break;
    case TokenRuleKind::kCapacity: {
      const std::int64_t capacity =
          expert_capacity(rule.capacity_factor, chosen.num_pairs(), chosen.num_experts(), chosen.num_tokens);
      TokenAssignment assignment = assemble(chosen, rule, within_capacity(chosen, capacity), {});
      assignment.capacity = capacity;
      return assignment;
    }
    case TokenRuleKind::kRounding: {
      const Rounded rounded = round_experts(chosen, rule, probabilities);
      return assemble(chosen, rule, rounded.kept, rounded.added);
    }
  }
  throw InternalError("assign_tokens was asked for every pair");
}

std::int64_t executed_rows(const Routing& routing, std::int64_t tile) {
  std::int64_t rows = 0;
  for (const std::int64_t load : expert_loads(routing)) {
    rows += (load + tile - 1) / tile * tile;
  }
  return rows;
}

std::int64_t executed_rows(const TokenAssignment& assignment) {
  return assignment.rule.kind == TokenRuleKind::kCapacity
             ? assignment.capacity * assignment.routing.num_experts()
             : executed_rows(assignment.routing, assignment.rule.tile);
}

}  // namespace moescope
