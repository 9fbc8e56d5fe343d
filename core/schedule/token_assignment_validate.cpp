// The invariants of an assignment, one by one; nothing here is shared with what made it.
#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/schedule/token_assignment.hpp"

namespace moescope {
namespace {

template <class... Args>
[[noreturn]] void broken_rule(fmt::format_string<Args...> format, Args&&... args) {
  throw InternalError("token assignment: " + fmt::format(format, std::forward<Args>(args)...));
}

/// What stands where the rule drew its line, for one expert. Smaller comes first.
struct Line {
  std::pair<double, std::int64_t> last_kept{-1e300, -1};
  std::pair<double, std::int64_t> first_dropped{1e300, -1};
  std::int64_t kept = 0;
  std::int64_t dropped = 0;
  std::int64_t added = 0;
  std::pair<double, std::int64_t> last_added{-1e300, -1};

  void keep(std::pair<double, std::int64_t> place) {
    ++kept;
    last_kept = std::max(last_kept, place);
  }
  void drop(std::pair<double, std::int64_t> place) {
    ++dropped;
    first_dropped = std::min(first_dropped, place);
  }
};

class Checker {
 public:
  Checker(const TokenAssignment& assignment, const Routing& chosen, const HostTensor* probabilities)
      : a_(assignment),
        chosen_(chosen),
        probabilities_(probabilities),
        lines_(static_cast<std::size_t>(chosen.num_experts())) {}

  void check() {
    a_.routing.validate();
    if (a_.routing.num_tokens != chosen_.num_tokens || a_.routing.num_experts() != chosen_.num_experts()) {
      broken_rule("{} tokens, {} experts, the choice has {}, {}", a_.routing.num_tokens,
                  a_.routing.num_experts(), chosen_.num_tokens, chosen_.num_experts());
    }
    for (std::int64_t token = 0; token < chosen_.num_tokens; ++token) {
      check_token(token);
    }
    if (dropped_ != a_.dropped_pairs || added_ != a_.added_pairs || without_ != a_.tokens_without ||
        a_.chosen_pairs != chosen_.num_pairs()) {
      broken_rule("counts {} chosen, {} dropped, {} added, {} tokens without; there are {}, {}, {}, {}",
                  a_.chosen_pairs, a_.dropped_pairs, a_.added_pairs, a_.tokens_without, chosen_.num_pairs(),
                  dropped_, added_, without_);
    }
    for (std::size_t expert = 0; expert < lines_.size(); ++expert) {
      check_expert(static_cast<std::int64_t>(expert));
    }
  }

 private:
  void check_token(std::int64_t token) {
    const auto chosen = chosen_.ids_of(token);
    const auto ran = a_.routing.ids_of(token);
    for (std::size_t k = 0; k < chosen.size(); ++k) {
      const auto found = std::ranges::lower_bound(ran, chosen[k]);
      Line& line = lines_[chosen[k]];
      if (found == ran.end() || *found != chosen[k]) {
        ++dropped_;
        line.drop(place(token, k));
        continue;
      }
      line.keep(place(token, k));
      const float gate = a_.routing.gates_of(token)[static_cast<std::size_t>(found - ran.begin())];
      if (gate != chosen_.gates_of(token)[k]) {
        broken_rule("token {}, expert {}: gate {} was {}", token, chosen[k], gate,
                    chosen_.gates_of(token)[k]);
      }
    }
    for (std::size_t k = 0; k < ran.size(); ++k) {
      if (std::ranges::binary_search(chosen, ran[k])) {
        continue;
      }
      ++added_;
      Line& line = lines_[ran[k]];
      ++line.added;
      const float gate = a_.routing.gates_of(token)[k];
      if (probabilities_ != nullptr && gate != probabilities_->f32().row(token)[ran[k]]) {
        broken_rule("token {}, expert {} was added with gate {}", token, ran[k], gate);
      }
      line.last_added = std::max(line.last_added, {-static_cast<double>(gate), token});
    }
    without_ += ran.empty() && !chosen.empty() ? 1 : 0;
  }

  /// Where the rule has this pair among those of its expert.
  std::pair<double, std::int64_t> place(std::int64_t token, std::size_t k) const {
    const auto gates = chosen_.gates_of(token);
    if (a_.rule.kind == TokenRuleKind::kRounding) {
      return {-static_cast<double>(gates[k]), token};
    }
    std::int64_t choice = 0;
    for (std::size_t other = 0; other < gates.size(); ++other) {
      choice += gates[other] > gates[k] || (gates[other] == gates[k] && other < k) ? 1 : 0;
    }
    return {static_cast<double>(choice), token};
  }

  void check_expert(std::int64_t expert) const {
    const Line& line = lines_[expert];
    if (line.dropped > 0 && line.first_dropped < line.last_kept) {
      broken_rule("expert {} drops token {} and keeps token {}, which comes behind it", expert,
                  line.first_dropped.second, line.last_kept.second);
    }
    const std::int64_t load = line.kept + line.dropped;
    const bool capacity = a_.rule.kind == TokenRuleKind::kCapacity;
    const std::int64_t want =
        capacity ? std::min(load, expert_capacity(a_.rule.capacity_factor, chosen_.num_pairs(),
                                                  chosen_.num_experts(), chosen_.num_tokens))
                 : rounded_tokens(a_.rule, load, chosen_.num_tokens);
    if (line.kept + line.added != want || (line.added > 0 && (capacity || line.dropped > 0))) {
      broken_rule("expert {} was chosen {} times, keeps {} and gains {}: must have {}", expert, load,
                  line.kept, line.added, want);
    }
    const bool looks = probabilities_ != nullptr && line.added > 0;
    for (std::int64_t token = 0; looks && token < chosen_.num_tokens; ++token) {
      const bool runs =
          std::ranges::binary_search(a_.routing.ids_of(token), static_cast<std::int32_t>(expert));
      const std::pair<double, std::int64_t> place = {
          -static_cast<double>(probabilities_->f32().row(token)[expert]), token};
      if (!runs && place < line.last_added) {
        broken_rule("expert {} gains token {} and not token {}, which gives it more", expert,
                    line.last_added.second, token);
      }
    }
  }

  const TokenAssignment& a_;
  const Routing& chosen_;
  const HostTensor* probabilities_;
  std::vector<Line> lines_;  ///< [N]
  std::int64_t dropped_ = 0;
  std::int64_t added_ = 0;
  std::int64_t without_ = 0;
};

}  // namespace

void validate(const TokenAssignment& assignment, const Routing& chosen, const HostTensor* probabilities) {
  Checker(assignment, chosen, probabilities).check();
}

}  // namespace moescope
