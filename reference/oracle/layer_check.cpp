#include "reference/oracle/layer_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <utility>

#include "core/base/error.hpp"

namespace moescope {
namespace {

/// One fp32 or bf16 tensor as the reference of another.
ErrorReport compare_tensors(const HostTensor& ours, const HostTensor& theirs) {
  std::vector<double> reference(static_cast<std::size_t>(theirs.size()));
  const HostTensor floats = theirs.to(Dtype::kF32);
  std::ranges::copy_n(floats.f32().data, theirs.size(), reference.begin());
  return compare(ours, {reference.data(), theirs.rows(), theirs.cols()});
}

HostTensor as_tensor(const std::vector<float>& values) {
  HostTensor tensor(Dtype::kF32, 1, static_cast<std::int64_t>(values.size()));
  std::ranges::copy(values, tensor.f32().data);
  return tensor;
}

/// Adds one comparison; what it throws is its failure.
class Checks {
 public:
  explicit Checks(LayerCheck& result) : result_(result) {}

  void add(Stage stage, std::string what, const char* metric, const std::function<void(StageCheck&)>& act) {
    StageCheck check;
    check.stage = stage;
    check.what = std::move(what);
    check.metric = metric;
    try {
      act(check);
    } catch (const OutOfMemory&) {
      throw;
    } catch (const Error& error) {
      check.passed = false;
      check.detail = error.what();
    }
    result_.stages.push_back(std::move(check));
  }

  /// What either holds or does not: `act` returns the first difference, empty when there is none.
  void add_equality(Stage stage, std::string what, const std::function<std::string()>& act) {
    add(stage, std::move(what), "mismatch", [&](StageCheck& check) {
      check.detail = act();
      check.passed = check.detail.empty();
      check.error = check.passed ? 0 : 1;
    });
  }

  void add_values(Stage stage, std::string what, double tolerance, const std::function<ErrorReport()>& act) {
    add(stage, std::move(what), "relative_error", [&](StageCheck& check) {
      const ErrorReport report = act();
      check.error = report.relative_error;
      check.tolerance = std::max(tolerance, report.tolerance);
      check.passed = report.relative_error <= check.tolerance;  // false for NaN
      check.detail = report.describe();
    });
  }

 private:
  LayerCheck& result_;
};

/// Score of a pair up to a constant of its token: the log-softmax shifts of eq. 10 cancel in comparisons.
double raw_score(const RouterLogits& logits, std::int64_t token, std::int32_t expert,
                 std::int64_t grid_cols) {
  return static_cast<double>(logits.row.f32().row(token)[expert / grid_cols]) +
         static_cast<double>(logits.col.f32().row(token)[expert % grid_cols]);
}

/// Selections from the same fp32 logits. A pair that only one side took is a near-tie when its score is
/// within rounding of the lowest score taken: both sides round p_r, p_c and their sum once, each of magnitude
/// up to |p_r| + |p_c|.
void compare_selections(const LayerShape& shape, const RouterLogits& logits, const Routing& ours,
                        const Routing& theirs, StageCheck& check, std::int64_t& near_ties) {
  constexpr double kRoundings = 8;  // two log-softmax subtractions and one sum on either side, and their lse
  std::int64_t wrong = 0;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto a = ours.ids_of(token);
    const auto b = theirs.ids_of(token);
    std::vector<std::int32_t> differing;
    std::ranges::set_symmetric_difference(a, b, std::back_inserter(differing));
    if (differing.empty()) {
      continue;
    }
    double threshold = INFINITY;
    double largest = 0;
    for (const std::int32_t expert : b) {
      const double score = raw_score(logits, token, expert, shape.grid_cols);
      threshold = std::min(threshold, score);
      largest = std::max(largest, std::abs(score));
    }
    const double extent =
        std::log(static_cast<double>(shape.grid_rows)) + std::log(static_cast<double>(shape.grid_cols));
    const double tolerance = kRoundings * 0x1.0p-24 * 2 * (largest + std::abs(threshold) + extent);
    for (const std::int32_t expert : differing) {
      const double score = raw_score(logits, token, expert, shape.grid_cols);
      if (a.size() == b.size() && std::abs(score - threshold) <= tolerance) {
        ++near_ties;
      } else if (wrong++ == 0) {
        check.detail =
            fmt::format("token {}, expert {}: score {:.9g} against threshold {:.9g} (tolerance {:.1e})",
                        token, expert, score, threshold, tolerance);
      }
    }
  }
  check.error =
      static_cast<double>(wrong) / static_cast<double>(std::max<std::int64_t>(1, theirs.num_pairs()));
  check.passed = wrong == 0;
}

/// Gates of the tokens on whose experts both sides agree.
ErrorReport compare_gates(const Routing& ours, const Routing& theirs) {
  std::vector<float> a;
  std::vector<float> b;
  for (std::int64_t token = 0; token < theirs.num_tokens; ++token) {
    if (std::ranges::equal(ours.ids_of(token), theirs.ids_of(token))) {
      std::ranges::copy(ours.gates_of(token), std::back_inserter(a));
      std::ranges::copy(theirs.gates_of(token), std::back_inserter(b));
    }
  }
  return compare_tensors(as_tensor(a), as_tensor(b));
}

/// Of a layer end to end: dot products of d terms, then sums of K terms, then the shared MLP's.
std::int64_t reduction_length(const LayerShape& shape) {
  return shape.hidden_size + shape.top_k + shape.shared_size;
}

/// First difference of two arrays, or empty.
template <class T>
std::string first_difference(const char* name, const std::vector<T>& ours, const std::vector<T>& theirs) {
  if (ours.size() != theirs.size()) {
    return fmt::format("{} has {} entries against {}", name, ours.size(), theirs.size());
  }
  for (std::size_t i = 0; i < ours.size(); ++i) {
    if (ours[i] != theirs[i]) {
      return fmt::format("{}[{}] = {} against {}", name, i, ours[i], theirs[i]);
    }
  }
  return {};
}

/// First difference of two schedules, or empty.
std::string compare_schedules(const Schedule& ours, const Schedule& theirs) {
  for (std::string& difference :
       std::vector{first_difference("experts", ours.experts, theirs.experts),
                   first_difference("tokens", ours.tokens, theirs.tokens),
                   first_difference("pair_offsets", ours.pair_offsets, theirs.pair_offsets),
                   first_difference("sorted_pair_ids", ours.sorted_pair_ids, theirs.sorted_pair_ids)}) {
    if (!difference.empty()) {
      return std::move(difference);
    }
  }
  return ours.items.size() == theirs.items.size()
             ? std::string()
             : fmt::format("{} items against {}", ours.items.size(), theirs.items.size());
}

/// Routing that all stages after selection are fed with.
Routing trusted_routing(MoeBackend& backend, const LayerInputs& inputs) {
  return inputs.fixed_routing ? *inputs.fixed_routing
                              : backend.router_select(inputs.shape, backend.router_project(inputs));
}

void check_router(Checks& checks, MoeBackend& backend, MoeBackend& mirror, const LayerInputs& inputs,
                  LayerCheck& result) {
  const LayerShape& shape = inputs.shape;
  const RouterLogits logits = mirror.router_project(inputs);
  checks.add(Stage::kRouterProject, "logits against the mirror", "relative_error", [&](StageCheck& check) {
    const RouterLogits ours = backend.router_project(inputs);
    const ErrorReport row = compare_tensors(ours.row, logits.row);
    const ErrorReport col = compare_tensors(ours.col, logits.col);
    check.error = std::max(row.relative_error, col.relative_error);
    check.tolerance = relative_error_tolerance(Dtype::kF32, shape.hidden_size);
    check.passed = row.relative_error <= check.tolerance && col.relative_error <= check.tolerance;
    check.detail = fmt::format("rows: {}; columns: {}", row.describe(), col.describe());
  });
  const Routing theirs = mirror.router_select(shape, logits);
  Routing ours;
  checks.add(Stage::kRouterSelect, "selection against the mirror", "wrong_pairs", [&](StageCheck& check) {
    ours = backend.router_select(shape, logits);
    ours.validate();
    compare_selections(shape, logits, ours, theirs, check, result.near_ties);
  });
  if (ours.num_tokens == theirs.num_tokens) {
    checks.add_values(Stage::kRouterSelect, "gates against the mirror",
                      relative_error_tolerance(Dtype::kF32, shape.top_k),
                      [&] { return compare_gates(ours, theirs); });
  }
}

void check_expert_stages(Checks& checks, MoeBackend& backend, MoeBackend& mirror, const LayerInputs& inputs,
                         const Routing& routing, const Schedule& schedule) {
  const LayerShape& shape = inputs.shape;
  const std::vector<float> scores = mirror.expert_scores(inputs, routing, schedule);
  checks.add_values(Stage::kExpertScores, "scores against the mirror",
                    relative_error_tolerance(Dtype::kF32, shape.hidden_size), [&] {
                      return compare_tensors(as_tensor(backend.expert_scores(inputs, routing, schedule)),
                                             as_tensor(scores));
                    });
  checks.add_values(Stage::kExpertCombine, "sums against the mirror",
                    relative_error_tolerance(shape.dtype, shape.top_k), [&] {
                      return compare_tensors(backend.expert_combine(inputs, routing, schedule, scores),
                                             mirror.expert_combine(inputs, routing, schedule, scores));
                    });
  checks.add_values(Stage::kExperts, "experts against the mirror",
                    relative_error_tolerance(shape.dtype, shape.hidden_size + shape.top_k), [&] {
                      return compare_tensors(backend.experts(inputs, routing, schedule),
                                             mirror.experts(inputs, routing, schedule));
                    });
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

void check_end_to_end(Checks& checks, MoeBackend& backend, const LayerInputs& inputs,
                      const ScheduleOptions& options, std::int64_t sampled_tokens, LayerCheck& result) {
  const auto tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens);
  std::unique_ptr<LayerExecution> execution;
  HostTensor output;
  Routing routing;
  checks.add_values(Stage::kLayer, "output against the oracle", layer_tolerance(inputs.shape), [&] {
    execution = backend.prepare(inputs, options);
    execution->run(L2State::kCold);
    output = execution->output();
    routing = execution->routing();
    routing.validate();
    return compare_with_oracle(inputs, routing, output, tokens);
  });
  if (routing.num_tokens == 0) {
    return;  // the run itself failed; it says so above
  }
  if (!inputs.fixed_routing) {
    checks.add(Stage::kRouterSelect, "selection against the oracle", "wrong_pairs", [&](StageCheck& check) {
      const SelectionReport report = compare_selection(routing, oracle_routing(inputs, tokens));
      check.error = static_cast<double>(report.wrong) /
                    static_cast<double>(std::max<std::int64_t>(1, report.compared_pairs));
      check.passed = report.ok();
      check.detail = report.first_wrong;
      result.near_ties += report.near_ties;
    });
  }
  if (execution->deterministic()) {
    checks.add_equality(Stage::kLayer, "second run against the first, bit by bit", [&] {
      execution->run(L2State::kWarm);
      const HostTensor again = execution->output();
      return same_bits(output, again) ? std::string() : compare_tensors(again, output).describe();
    });
  }
}

}  // namespace

bool LayerCheck::passed() const { return !stages.empty() && first_failure() == nullptr; }

const StageCheck* LayerCheck::first_failure() const {
  const auto found = std::ranges::find(stages, false, &StageCheck::passed);
  return found == stages.end() ? nullptr : &*found;
}

const StageCheck* LayerCheck::layer() const {
  const auto found = std::ranges::find(stages, Stage::kLayer, &StageCheck::stage);
  return found == stages.end() ? nullptr : &*found;
}

ErrorReport compare_with_oracle(const LayerInputs& inputs, const Routing& routing, const HostTensor& output,
                                const std::vector<std::int64_t>& tokens) {
  const OracleLayer oracle = oracle_layer(inputs, {tokens, &routing});
  ErrorReport report = compare(gather_rows(output, tokens), oracle.view());
  report.tolerance = sample_tolerance(inputs.shape.dtype, reduction_length(inputs.shape), oracle.rounding);
  return report;
}

std::function<ErrorReport(const HostTensor&, const Routing&)> oracle_judge(const LayerInputs& inputs,
                                                                           std::int64_t sampled_tokens) {
  return [&inputs, tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens)](const HostTensor& output,
                                                                                    const Routing& routing) {
    return compare_with_oracle(inputs, routing, output, tokens);
  };
}

double layer_tolerance(const LayerShape& shape) {
  return relative_error_tolerance(shape.dtype, reduction_length(shape));
}

LayerCheck check_layer(MoeBackend& backend, MoeBackend* mirror, const LayerInputs& inputs,
                       const ScheduleOptions& options, std::int64_t sampled_tokens) {
  LayerCheck result;
  Checks checks(result);
  MoeBackend& trusted = mirror == nullptr ? backend : *mirror;
  if (mirror != nullptr && !inputs.fixed_routing) {
    check_router(checks, backend, *mirror, inputs, result);
  }
  const Routing routing = trusted_routing(trusted, inputs);
  // auto is resolved inside the execution; the choice is checked end to end.
  if (options.kind != ScheduleKind::kAuto) {
    checks.add_equality(Stage::kSchedule, "invariants", [&] {
      validate(backend.schedule(routing, options), routing);
      return std::string();
    });
    std::string why;
    if (mirror != nullptr && mirror->supports(options.kind, why)) {
      const Schedule schedule = mirror->schedule(routing, options);
      checks.add_equality(Stage::kSchedule, "schedule against the mirror",
                          [&] { return compare_schedules(backend.schedule(routing, options), schedule); });
      check_expert_stages(checks, backend, *mirror, inputs, routing, schedule);
    }
  }
  if (mirror != nullptr && inputs.shape.shared_size > 0) {
    checks.add_values(
        Stage::kSharedMlp, "shared MLP against the mirror",
        relative_error_tolerance(inputs.shape.dtype, inputs.shape.hidden_size + inputs.shape.shared_size),
        [&] { return compare_tensors(backend.shared_mlp(inputs), mirror->shared_mlp(inputs)); });
  }
  check_end_to_end(checks, backend, inputs, options, sampled_tokens, result);
  return result;
}

}  // namespace moescope
