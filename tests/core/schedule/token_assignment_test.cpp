// Rules for tokens of FFN experts, against NumPy's dense one-hot arithmetic (tests/data/token_rules/make.py),
// and what validate() does not let pass.
#include "core/schedule/token_assignment.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/base/error.hpp"
#include "core/files/npy.hpp"
#include "core/schedule/schedule.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/paths.hpp"

namespace moescope {
namespace {

/// The router's choice of rules.npz, and softmax of its logits.
struct Choice {
  ArrayFile file;
  Routing routing;
  HostTensor probabilities;
};

Choice recorded_choice() {
  const std::string path = test::source_path("tests/data/token_rules/rules.npz");
  Choice choice{read_npy_or_npz(path), {}, {}};
  const auto ids = choice.file.get(path, "expert_ids").to_integers(path, "expert_ids");
  choice.routing.gates = choice.file.get(path, "gates").to_floats(path, "gates");
  const HostTensor logits = choice.file.get(path, "logits").to_tensor(Dtype::kF32, path, "logits");
  choice.routing.num_tokens = logits.rows();
  choice.routing.grid_rows = 1;
  choice.routing.grid_cols = logits.cols();
  for (std::int64_t token = 0; token <= logits.rows(); ++token) {
    choice.routing.token_offsets.push_back(token * std::ssize(ids) / logits.rows());
  }
  choice.routing.expert_ids.assign(ids.begin(), ids.end());
  choice.probabilities = HostTensor(Dtype::kF32, logits.rows(), logits.cols());
  for (std::int64_t token = 0; token < logits.rows(); ++token) {
    double sum = 0;
    for (std::int64_t e = 0; e < logits.cols(); ++e) {
      sum += std::exp(static_cast<double>(logits.at(token, e)));
    }
    for (std::int64_t e = 0; e < logits.cols(); ++e) {
      choice.probabilities.f32().row(token)[e] =
          static_cast<float>(std::exp(static_cast<double>(logits.at(token, e))) / sum);
    }
  }
  return choice;
}

/// Two tokens of two experts each, three experts: expert 0 of both tokens, first choice of the second alone.
Routing two_tokens() {
  Routing routing;
  routing.num_tokens = 2;
  routing.grid_rows = 1;
  routing.grid_cols = 3;
  routing.token_offsets = {0, 2, 4};
  routing.expert_ids = {0, 1, 0, 2};
  routing.gates = {0.25F, 0.75F, 0.875F, 0.125F};
  return routing;
}

TEST(TokenRule, IsReadAndWrittenInOneWay) {
  for (const char* text : {"padded:1.25", "padded:1", "padded:0.5", "token_rounding", "token_rounding:up",
                           "token_rounding:down", "token_rounding:nearest:64", "token_rounding:down:1"}) {
    const ScheduleOptions schedule = parse_schedule(text);
    EXPECT_EQ(to_string(schedule), text);
    EXPECT_EQ(schedule.kind, ScheduleKind::kExpertCentric);
    EXPECT_EQ(schedule.group_size, 1);
  }
  EXPECT_EQ(to_string(parse_schedule("token_rounding:nearest:128")), "token_rounding");
  EXPECT_EQ(to_string(parse_schedule("padded:1.50")), "padded:1.5");
  EXPECT_EQ(parse_token_rule("staircase:rows"), std::nullopt);
  for (const char* text :
       {"padded", "padded:", "padded:0", "padded:-1", "padded:nan", "padded:1e7", "padded:1:2"}) {
    EXPECT_EQ(test::error_text<InvalidArgument>([&] { parse_schedule(text); }),
              std::string("schedule = ") + text +
                  ": must be padded:CAPACITY, the capacity factor above 0 and up to 1e6, e.g. padded:1.25");
  }
  for (const char* text : {"token_rounding:", "token_rounding:sideways", "token_rounding:up:0",
                           "token_rounding:up:2000000", "token_rounding:64", "token_rounding:up:8:8"}) {
    EXPECT_EQ(test::error_text<InvalidArgument>([&] { parse_schedule(text); }),
              std::string("schedule = ") + text +
                  ": must be token_rounding[:nearest|up|down[:TILE]], TILE from 1 to 1048576 rows");
  }
}

TEST(TokenRule, CountsTokens) {
  EXPECT_EQ(expert_capacity(1.25, 64 * 8, 64, 64), 10);
  EXPECT_EQ(expert_capacity(1, 10, 3, 10), 4);
  EXPECT_EQ(expert_capacity(1e6, 512, 64, 64), 64);  // no more than there are tokens
  const auto rounded = [](RoundTo to, std::int64_t count) {
    return rounded_tokens({.kind = TokenRuleKind::kRounding, .round_to = to, .tile = 8}, count, 1000);
  };
  EXPECT_EQ(rounded(RoundTo::kNearest, 3), 0);
  EXPECT_EQ(rounded(RoundTo::kNearest, 4), 0);  // halves to the even multiple
  EXPECT_EQ(rounded(RoundTo::kNearest, 5), 8);
  EXPECT_EQ(rounded(RoundTo::kNearest, 12), 16);
  EXPECT_EQ(rounded(RoundTo::kUp, 1), 8);
  EXPECT_EQ(rounded(RoundTo::kUp, 16), 16);
  EXPECT_EQ(rounded(RoundTo::kDown, 15), 8);
  EXPECT_EQ(rounded_tokens({.kind = TokenRuleKind::kRounding, .round_to = RoundTo::kUp, .tile = 8}, 9, 12),
            12);
}

TEST(TokenAssignment, FirstChoicesComeBeforeSecondOnes) {
  // One row an expert: token 0 comes first, but expert 0 is its second choice.
  const TokenAssignment kept = assign_tokens(two_tokens(), *parse_token_rule("padded:0.75"), nullptr);
  EXPECT_EQ(kept.capacity, 1);
  EXPECT_EQ(kept.routing.expert_ids, (std::vector<std::int32_t>{1, 0, 2}));
  EXPECT_EQ(kept.routing.gates, (std::vector<float>{0.75F, 0.875F, 0.125F}));
  EXPECT_EQ(kept.routing.token_offsets, (std::vector<std::int64_t>{0, 1, 3}));
  EXPECT_EQ(kept.dropped_pairs, 1);
  EXPECT_EQ(kept.tokens_without, 0);
  EXPECT_EQ(executed_rows(kept), 3);
}

TEST(TokenAssignment, IsNumPys) {
  const Choice choice = recorded_choice();
  std::int64_t compared = 0;
  for (const auto& [name, array] : choice.file.arrays) {
    if (name.find(':') == std::string::npos || name.ends_with("capacity")) {
      continue;
    }
    const TokenRule rule = *parse_token_rule(name);
    const TokenAssignment ours = assign_tokens(choice.routing, rule, &choice.probabilities);
    EXPECT_NO_THROW(validate(ours, choice.routing, &choice.probabilities)) << name;
    const auto runs = array.to_integers("rules.npz", name);
    std::int64_t dropped = 0;
    std::int64_t added = 0;
    for (std::int64_t token = 0; token < choice.routing.num_tokens; ++token) {
      const auto ids = ours.routing.ids_of(token);
      for (std::int32_t e = 0; e < choice.routing.num_experts(); ++e) {
        const bool theirs = runs[static_cast<std::size_t>(token * choice.routing.num_experts() + e)] != 0;
        const bool chosen = std::ranges::binary_search(choice.routing.ids_of(token), e);
        EXPECT_EQ(std::ranges::binary_search(ids, e), theirs)
            << name << ", token " << token << ", expert " << e;
        dropped += chosen && !theirs ? 1 : 0;
        added += theirs && !chosen ? 1 : 0;
        ++compared;
      }
    }
    EXPECT_EQ(ours.dropped_pairs, dropped) << name;
    EXPECT_EQ(ours.added_pairs, added) << name;
    if (rule.kind == TokenRuleKind::kCapacity) {
      EXPECT_EQ(ours.capacity, choice.file.get("", name + " capacity").to_integers("", "").front()) << name;
    }
    if (!needs_probabilities(rule)) {
      EXPECT_EQ(assign_tokens(choice.routing, rule, nullptr).routing.expert_ids, ours.routing.expert_ids);
    }
  }
  EXPECT_EQ(compared, 10 * 96 * 12);
}

TEST(TokenAssignment, WithoutProbabilitiesNothingIsAdded) {
  const Choice choice = recorded_choice();
  EXPECT_EQ(
      test::error_text<InvalidArgument>(
          [&] { assign_tokens(choice.routing, *parse_token_rule("token_rounding:up"), nullptr); }),
      "schedule = token_rounding:up: adds tokens by the router's probabilities, which a fixed routing has "
      "not; token_rounding:down needs the recorded gates alone");
  const HostTensor wrong(Dtype::kF32, 2, 3);
  EXPECT_THROW(assign_tokens(choice.routing, *parse_token_rule("token_rounding"), &wrong), InvalidArgument);
}

TEST(TokenAssignment, OfNothingIsNothing) {
  // Every expert has less than half a tile: all of them lose all.
  const TokenAssignment none =
      assign_tokens(two_tokens(), *parse_token_rule("token_rounding:down:8"), nullptr);
  EXPECT_EQ(none.routing.num_pairs(), 0);
  EXPECT_EQ(none.dropped_pairs, 4);
  EXPECT_EQ(none.tokens_without, 2);
  EXPECT_EQ(executed_rows(none), 0);
  EXPECT_NO_THROW(validate(none, two_tokens(), nullptr));
}

TEST(TokenAssignment, ValidateFindsWhatIsNotTheRules) {
  const Choice choice = recorded_choice();
  const auto fault = [&](const char* text, const auto& change) {
    TokenAssignment broken = assign_tokens(choice.routing, *parse_token_rule(text), &choice.probabilities);
    change(broken);
    return test::error_text<InternalError>([&] { validate(broken, choice.routing, &choice.probabilities); });
  };
  const auto drop_last = [](TokenAssignment& broken) {
    Routing& routing = broken.routing;
    routing.expert_ids.pop_back();
    routing.gates.pop_back();
    --routing.token_offsets.back();
    ++broken.dropped_pairs;
  };
  const auto says = [](const std::string& text, const char* words) {
    return text.find(words) != std::string::npos ? "" : text + " does not say " + words;
  };
  EXPECT_EQ(says(fault("padded:1", [](TokenAssignment& a) { ++a.dropped_pairs; }), "dropped, 0 added"), "");
  EXPECT_EQ(says(fault("padded:1", [](TokenAssignment& a) { a.routing.gates[3] += 0.5F; }), ": gate "), "");
  EXPECT_EQ(says(fault("token_rounding:down:8", drop_last), "drops token 95 and keeps token"), "");
  EXPECT_EQ(says(fault("padded:1", [](TokenAssignment& a) { a.rule.capacity_factor = 2; }), "must have"), "");
  const auto gain = [](TokenAssignment& a) {  // the last token runs with an expert more
    for (std::int32_t e = 0; e < a.routing.num_experts(); ++e) {
      const auto ids = a.routing.ids_of(a.routing.num_tokens - 1);
      if (std::ranges::binary_search(ids, e)) {
        continue;
      }
      const auto at = std::ranges::lower_bound(ids, e) - ids.begin() + *(a.routing.token_offsets.end() - 2);
      a.routing.expert_ids.insert(a.routing.expert_ids.begin() + at, e);
      a.routing.gates.insert(a.routing.gates.begin() + at, 0.5F);
      ++a.routing.token_offsets.back();
      return;
    }
  };
  EXPECT_NE(fault("padded:1", gain), "(no error)");
  // The same count by other tokens: the rule's order is looked at.
  TokenAssignment swapped = assign_tokens(two_tokens(), *parse_token_rule("padded:0.75"), nullptr);
  swapped.routing.expert_ids = {0, 1, 2};
  swapped.routing.gates = {0.25F, 0.75F, 0.125F};
  swapped.routing.token_offsets = {0, 2, 3};
  EXPECT_EQ(says(test::error_text<InternalError>([&] { validate(swapped, two_tokens(), nullptr); }),
                 "expert 0 drops token 1 and keeps token 0, which comes behind it"),
            "");
}

TEST(TokenAssignment, CountsWholeTiles) {
  const Choice choice = recorded_choice();
  for (const char* text : {"token_rounding:up:8", "token_rounding:down:8", "token_rounding:nearest:32"}) {
    const TokenAssignment rounded =
        assign_tokens(choice.routing, *parse_token_rule(text), &choice.probabilities);
    EXPECT_EQ(executed_rows(rounded), rounded.routing.num_pairs()) << text;  // what the rule is for
  }
  EXPECT_GT(executed_rows(choice.routing, 32), choice.routing.num_pairs());
}

}  // namespace
}  // namespace moescope
