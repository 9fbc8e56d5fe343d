#include "profiler/claims/claim_evidence.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <tuple>

#include "profiler/text/format.hpp"

namespace moescope::detail {
namespace {

/// Own choice: what rules call "as in the paper".
constexpr double kTolerance = 0.1;

ClaimVerdict verdict_of(const Claim& claim, double ours, std::string_view device) {
  if (claim.rule == Rule::kNone) {
    return ClaimVerdict::kNotClaimed;
  }
  const double paper = *claim.paper;
  const auto pick = [](bool holds, bool conditions) {
    return holds        ? ClaimVerdict::kHolds
           : conditions ? ClaimVerdict::kHoldsWithConditions
                        : ClaimVerdict::kDoesNotHold;
  };
  switch (claim.rule) {
    case Rule::kAtLeast:
      return pick(ours >= (1 - kTolerance) * paper, ours > 1 + kTolerance);
    case Rule::kAbout:
      return pick(std::abs(ours / paper - 1) <= kTolerance, (ours < 1) == (paper < 1));
    case Rule::kTime:  // Another device being faster says little of the claim.
      return pick(ours <= paper && device.find("A100") != std::string_view::npos, ours <= paper);
    default:
      return pick(ours <= paper, false);
  }
}

/// Figures of one claim in order, the best first: by verdict, then by distance.
std::pair<int, double> badness(const Claim& claim, double ours, ClaimVerdict verdict) {
  const double distance = claim.rule == Rule::kAbout ? std::abs(ours / *claim.paper - 1)
                          : claim.rule == Rule::kTime || claim.rule == Rule::kShare ? ours
                                                                                    : -ours;
  return {rank(verdict), distance};
}

/// Greater is newer: by the older of the two recordings; then those of a single run; then by the newer one;
/// then by PyTorch's, where it is a third.
auto preference(const Statement& statement) {
  const RecordingAge first = age_of(*statement.from.front());
  const RecordingAge second = age_of(*statement.from[statement.from.size() > 1 ? 1 : 0]);
  return std::tuple(std::min(first, second), first == second, std::max(first, second),
                    age_of(*statement.from.back()));
}

std::string against(const RecordingPair& pair, double above, double below,
                    const std::function<std::string(double)>& text) {
  return fmt::format("{} ({}) against {} ({})", text(above), pair.above.schedule->name, text(below),
                     pair.below.schedule->name);
}

ClaimResult blank(const Claim& claim) {
  ClaimResult result;
  result.claim = claim.name;
  result.unit = claim.rule == Rule::kShare  ? ClaimUnit::kShare
                : claim.rule == Rule::kTime ? ClaimUnit::kSeconds
                                            : ClaimUnit::kRatio;
  result.paper = claim.paper;
  result.why = claim.needs;
  return result;
}

}  // namespace

std::set<std::string> ClaimEvidence::names_of(std::span<const Recording* const> recordings) const {
  std::set<std::string> names;
  for (const Recording* recording : recordings) {
    names.insert(names_.of(*recording));
  }
  return names;
}

/// Fills in `used` and `passed_over` and says the latter in `why`: `able` are the recordings that could have
/// served.
void ClaimEvidence::name_sources(ClaimResult& result, std::span<const Recording* const> used,
                                 std::span<const Recording* const> able,
                                 std::initializer_list<WantedLayer> layers) const {
  const std::set<std::string> chosen = names_of(used);
  const std::set<std::string> could = names_of(able);
  std::set<std::string> others;
  std::set<std::string> unable;
  for (const Recording* recording : recordings_) {
    const std::string name = names_.of(*recording);
    if (!chosen.contains(name) &&
        std::ranges::any_of(layers, [&](const WantedLayer& layer) { return matches(*recording, layer); })) {
      (could.contains(name) ? others : unable).insert(name);
    }
  }
  result.used.assign(chosen.begin(), chosen.end());
  result.passed_over.assign(others.begin(), others.end());
  result.passed_over.insert(result.passed_over.end(), unable.begin(), unable.end());
  if (!others.empty()) {
    result.why += fmt::format(". Passed over: {}", joined_names(others));
  }
  if (!unable.empty()) {
    result.why +=
        fmt::format(". Without the schedule, stage or seed that it needs: {}", joined_names(unable));
  }
}

ClaimResult ClaimEvidence::settle(const Claim& claim, std::span<const Statement> statements,
                                  std::initializer_list<WantedLayer> layers) const {
  ClaimResult result = blank(claim);
  if (statements.empty()) {
    return result;
  }
  const auto bad = [&](const Statement& statement) {
    return badness(claim, statement.ours, verdict_of(claim, statement.ours, device_));
  };
  const auto whole = [&](const Statement& statement) {
    return statement.complete || std::ranges::none_of(statements, &Statement::complete);
  };
  const Statement& chosen = *std::ranges::max_element(statements, {}, [&](const Statement& statement) {
    return std::tuple(whole(statement), preference(statement), bad(statement));
  });
  const Statement& worst_whole = *std::ranges::max_element(statements, {}, [&](const Statement& statement) {
    return std::pair(whole(statement), bad(statement));
  });
  // Of those that lack something the newest that says worst: it counts where its verdict is worse.
  const Statement& partial = *std::ranges::max_element(statements, {}, [&](const Statement& statement) {
    const auto [verdict, distance] = bad(statement);
    return std::tuple(!whole(statement), verdict, preference(statement), -distance);
  });
  const Statement& worst = bad(partial).first > bad(worst_whole).first ? partial : worst_whole;
  result.ours = chosen.ours;
  result.verdict = verdict_of(claim, chosen.ours, device_);
  result.worst = worst.ours;
  result.worst_verdict = verdict_of(claim, worst.ours, device_);
  result.why = fmt::format("{}; from {}", chosen.what, names(chosen.from));
  if (bad(worst) > bad(chosen)) {
    result.why +=
        fmt::format(". Worst{}: {}; from {}", whole(worst) ? "" : ", of recordings that lack part of it",
                    worst.what, names(worst.from));
  }
  std::vector<const Recording*> able;
  for (const Statement& statement : statements) {
    able.insert(able.end(), statement.from.begin(), statement.from.end());
  }
  name_sources(result, chosen.from, able, layers);
  return result;
}

ClaimResult ClaimEvidence::ratio(const Claim& claim, const RatioSide& above, const RatioSide& below) const {
  const bool bytes = above.quantity == peak_bytes || above.quantity == workspace_bytes;
  std::vector<Statement> statements;
  for (const RecordingPair& pair : recording_pairs(recordings_, above, below)) {
    const double upper = *above.quantity(*pair.above.schedule);
    const double lower = *below.quantity(*pair.below.schedule);
    statements.push_back({upper / lower,
                          against(pair, upper, lower, bytes ? format_bytes : format_seconds),
                          {pair.above.recording, pair.below.recording},
                          pair.complete});
  }
  return settle(claim, statements, {above.layer, below.layer});
}

ClaimResult ClaimEvidence::share(const Claim& claim, Stage stage, std::string_view schedule) const {
  const WantedLayer any{.num_tokens = {}, .top_k = {}, .workload = {}};
  struct Share {
    double value = 0;
    const Recording* of = nullptr;
  };
  std::map<std::tuple<std::int64_t, std::int64_t, std::string>, std::vector<Share>> points;
  std::vector<const Recording*> able;
  for (const auto& [recording, of] : recordings_with(recordings_, {.layer = any, .schedule = schedule})) {
    if (const auto stage_s = of->value(stage, "time_s")) {
      const ResultRow& what = *recording->what;
      points[{what.num_tokens, what.top_k, what.workload}].push_back(
          {*stage_s / *layer_time_s(*of), recording});
      able.push_back(recording);
    }
  }
  ClaimResult result = blank(claim);
  if (points.empty()) {
    return result;
  }
  std::ptrdiff_t within = 0;
  std::ptrdiff_t older_beyond = 0;
  double largest = 0;
  Share worst;
  std::string worst_at;
  std::vector<const Recording*> used;
  for (const auto& [where, shares] : points) {
    const auto [tokens, top_k, workload] = where;
    const Share newest = *std::ranges::max_element(
        shares, {}, [](const Share& share) { return std::pair(age_of(*share.of), share.value); });
    const Share most = *std::ranges::max_element(shares, {}, &Share::value);
    used.push_back(newest.of);
    within += newest.value <= *claim.paper ? 1 : 0;
    older_beyond += newest.value <= *claim.paper && most.value > *claim.paper ? 1 : 0;
    largest = std::max(largest, newest.value);
    if (most.value > worst.value) {
      worst = most;
      worst_at = fmt::format("L {} K {} {}", tokens, top_k, workload);
    }
    if (tokens == 4096 && top_k == 512 && workload == "gaussian:1") {
      result.ours = newest.value;
    }
  }
  result.ours = result.ours.value_or(largest);
  result.verdict = within == std::ssize(points) ? ClaimVerdict::kHolds
                   : within > 0                 ? ClaimVerdict::kHoldsWithConditions
                                                : ClaimVerdict::kDoesNotHold;
  result.worst = worst.value;
  result.worst_verdict = verdict_of(claim, worst.value, device_);
  result.why = fmt::format("{} of {} layers with L >= 1024 are within", within, points.size());
  if (older_beyond > 0) {
    result.why += fmt::format(", of which an older recording of {} is not", older_beyond);
  }
  result.why += fmt::format("; from {}. Worst: {} at {}; from {}", names(used), format_percent(worst.value),
                            worst_at, names_.of(*worst.of));
  name_sources(result, used, able, {any});
  return result;
}

}  // namespace moescope::detail
