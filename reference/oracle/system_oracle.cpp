#include "reference/oracle/system_oracle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "core/base/error.hpp"
#include "reference/oracle/oracle_math.hpp"
#include "reference/oracle/stage_compare.hpp"

namespace moescope {
namespace {

using oracle::row_of;
using oracle::sigma;
using oracle::Vector;

/// A half query, and how far each of its elements may be off in the path under test.
struct BoundedQuery {
  Vector q;
  Vector error;
};

/// LayerNorm(x Wq^T) of one half of one head; without weights no norm.
BoundedQuery bounded_query(const SystemInputs& inputs, const Vector& x, std::int64_t first_row) {
  const auto& shape = inputs.shape;
  const auto& keys = *inputs.weights->keys;
  BoundedQuery half;
  double partial = 0;  // largest partial sum of the projection
  for (std::int64_t i = 0; i < shape.key_size; ++i) {
    const Vector w = row_of(keys.queries, first_row + i);
    double sum = 0;
    for (std::size_t k = 0; k < x.size(); ++k) {
      sum += x[k] * w[k];
      partial = std::max(partial, std::abs(sum));
    }
    half.q.push_back(sum);
  }
  if (!keys.norm_weight.empty()) {
    partial *= oracle::standardize(half.q);
    for (std::size_t i = 0; i < half.q.size(); ++i) {
      half.q[i] = half.q[i] * keys.norm_weight[i] + keys.norm_bias[i];
    }
  }
  for (const double value : half.q) {
    half.error.push_back(stored_product_error(shape.dtype, shape.hidden_size, partial, std::abs(value)));
  }
  return half;
}

/// Scores of one half's sub-keys, and what bounds their errors.
struct HalfScores {
  Vector scores;
  double partial_sum_scale = 0;
  double score_scale = 0;
  double operand_error = 0;  ///< largest root sum of squares of (query error * key element)
};

HalfScores half_scores(const SystemInputs& inputs, const Vector& x, std::int64_t head, std::int64_t half) {
  const auto& shape = inputs.shape;
  const auto query = bounded_query(inputs, x, (half * shape.heads + head) * shape.key_size);
  HalfScores result;
  for (std::int64_t key = 0; key < shape.num_keys(); ++key) {
    const Vector k = row_of(inputs.weights->keys->keys, (head * shape.num_keys() + key) * 2 + half);
    double sum = 0;
    double squares = 0;
    for (std::size_t i = 0; i < k.size(); ++i) {
      sum += query.q[i] * k[i];
      squares += query.error[i] * k[i] * query.error[i] * k[i];
      result.partial_sum_scale = std::max(result.partial_sum_scale, std::abs(sum));
    }
    result.scores.push_back(sum);
    result.score_scale = std::max(result.score_scale, std::abs(sum));
    result.operand_error = std::max(result.operand_error, std::sqrt(squares));
  }
  return result;
}

/// Scores of one query of token x as marginals of its grid.
void append_scores(const SystemInputs& inputs, const Vector& x, std::int64_t head, OracleRouting& routing) {
  const auto& shape = inputs.shape;
  if (shape.has_ffn_experts()) {
    const auto marginal = oracle::log_softmax_of_logits(x, inputs.weights->router, {});
    routing.row_log_p.push_back(0);
    routing.col_log_p.insert(routing.col_log_p.end(), marginal.log_p.begin(), marginal.log_p.end());
    routing.tolerance.push_back(
        selection_tolerance(shape.hidden_size, marginal.partial_sum_scale, marginal.score_scale));
    return;
  }
  const auto row = half_scores(inputs, x, head, 0);
  const auto col = half_scores(inputs, x, head, 1);
  routing.row_log_p.insert(routing.row_log_p.end(), row.scores.begin(), row.scores.end());
  routing.col_log_p.insert(routing.col_log_p.end(), col.scores.begin(), col.scores.end());
  routing.tolerance.push_back(selection_tolerance(shape.key_size,
                                                  row.partial_sum_scale + col.partial_sum_scale,
                                                  row.score_scale + col.score_scale) +
                              operand_selection_tolerance(row.operand_error + col.operand_error));
}

/// y += gate * expert(x) for one FFN expert, PKM value or PEER neuron.
void add_expert(const SystemInputs& inputs, const Vector& x, std::int32_t id, double gate, Vector& y,
                TokenRounding& rounding) {
  const auto& shape = inputs.shape;
  const auto& weights = *inputs.weights;
  if (shape.has_ffn_experts()) {
    const auto f = shape.expert_size;
    const HostTensor& gate_up = weights.experts->gate_up;
    oracle::add_gated_mlp(
        x, {gate_up, gate_up, weights.experts->down, f, id * 2 * f, id * 2 * f + f, id * shape.hidden_size},
        shape.activation, gate, y, rounding);
    return;
  }
  double p = gate;
  double magnitude = std::abs(gate);
  if (shape.system != System::kPkm) {
    const oracle::Product in = oracle::product(x, row_of(weights.w_in, id));
    p *= sigma(shape.activation, in.value);
    magnitude *= in.magnitude;
  }
  oracle::add_scored_row(p, magnitude, row_of(weights.w_out, id), y, rounding);
}

/// What a token chose, and what ran of it.
struct RanPairs {
  std::span<const std::int32_t> chosen;
  const Vector& gates;  ///< of the chosen
  std::span<const std::int32_t> ran;
};

void add_ran(const SystemInputs& inputs, const Vector& x, const OracleRouting& routing, std::size_t query,
             const RanPairs& pairs, Vector& y, TokenRounding& rounding) {
  for (const std::int32_t expert : pairs.ran) {
    const auto at = std::ranges::find(pairs.chosen, expert);
    const double gate = at != pairs.chosen.end()
                            ? pairs.gates[static_cast<std::size_t>(at - pairs.chosen.begin())]
                            : std::exp(routing.score(static_cast<std::int64_t>(query), expert));
    add_expert(inputs, x, expert, gate, y, rounding);
  }
}

void require_selection(const Routing& selection, const SystemShape& shape) {
  const LayerShape row = shape.row_shape();
  if (selection.num_tokens != shape.num_queries() || selection.grid_rows != row.grid_rows ||
      selection.grid_cols != row.grid_cols) {
    throw InvalidArgument(
        "selection",
        fmt::format("{} rows, grid {} x {}", selection.num_tokens, selection.grid_rows, selection.grid_cols),
        fmt::format("must belong to {}", shape.label()));
  }
  selection.validate();
}

/// The oracle's own selection for every query of `tokens`.
OracleRouting select(const SystemInputs& inputs, const std::vector<std::int64_t>& tokens) {
  const auto& shape = inputs.shape;
  const LayerShape row = shape.row_shape();
  OracleRouting routing;
  routing.grid_rows = row.grid_rows;
  routing.grid_cols = row.grid_cols;
  routing.token_offsets.push_back(0);
  for (std::size_t t = 0; shape.has_routing() && t < tokens.size(); ++t) {
    const Vector x = row_of(inputs.hidden_states, tokens[t]);
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const auto query = std::ssize(routing.tokens);
      if (inputs.fixed_routing) {
        const std::int64_t fixed = tokens[t] * shape.heads + head;
        const auto gates = inputs.fixed_routing->gates_of(fixed);
        routing.tokens.push_back(fixed);
        oracle::append_query(routing, inputs.fixed_routing->ids_of(fixed),
                             Vector(gates.begin(), gates.end()));
        continue;
      }
      routing.tokens.push_back(tokens[t] * shape.heads + head);
      append_scores(inputs, x, head, routing);
      const auto ids =
          oracle::top_k_of_all(routing, query, shape.top_k_per_query(), routing.threshold.emplace_back());
      oracle::append_query(routing, ids, oracle::gates_of_scores(routing, query, ids, shape.gate_mode));
    }
  }
  return routing;
}

/// A fixed routing is what ran, pair by pair.
SelectionReport compare_with_fixed(const Routing& routing, const Routing& fixed) {
  SelectionReport report;
  report.compared_pairs = fixed.num_pairs();
  for (std::size_t pair = 0; pair < fixed.expert_ids.size(); ++pair) {
    const bool same = pair < routing.expert_ids.size() &&
                      routing.expert_ids[pair] == fixed.expert_ids[pair] &&
                      routing.gates[pair] == fixed.gates[pair];
    if (!same && report.wrong++ == 0) {
      report.first_wrong = fmt::format("pair {} of the fixed routing", pair);
    }
  }
  return report;
}

/// Where an assignment is not what `rule` says, in words. Which tokens were added is judged by fp64 scores of
/// the sampled tokens alone.
std::string fault_of(const TokenAssignment& assignment, const Routing& chosen, const TokenRule& rule,
                     const OracleRouting& truth) {
  if (!(assignment.rule == rule)) {
    return fmt::format("{} ran as {}", to_string(rule), to_string(assignment.rule));
  }
  try {
    validate(assignment, chosen, nullptr);
  } catch (const InternalError& error) {
    return error.what();
  }
  if (assignment.added_pairs == 0) {
    return {};
  }
  constexpr double kExpError = 1e-6;  // of exp in fp32, relative
  for (std::int32_t expert = 0; expert < chosen.num_experts(); ++expert) {
    double least_added = 1;  // of log probabilities, which are not above 0
    double most_left = -std::numeric_limits<double>::infinity();
    for (std::size_t t = 0; t < truth.tokens.size(); ++t) {
      if (std::ranges::binary_search(chosen.ids_of(truth.tokens[t]), expert)) {
        continue;
      }
      const double score = truth.score(static_cast<std::int64_t>(t), expert);
      const double tolerance = truth.tolerance[t] + kExpError;
      if (std::ranges::binary_search(assignment.routing.ids_of(truth.tokens[t]), expert)) {
        least_added = std::min(least_added, score + tolerance);
      } else {
        most_left = std::max(most_left, score - tolerance);
      }
    }
    if (most_left > least_added) {
      return fmt::format("expert {} gained a token of log probability {:.6g} and not one of {:.6g}", expert,
                         least_added, most_left);
    }
  }
  return {};
}

}  // namespace

SystemOracle system_oracle(const SystemInputs& inputs, const std::vector<std::int64_t>& tokens,
                           const Routing* selection, const Routing* ran) {
  const auto& shape = inputs.shape;
  for (const Routing* given : {selection, ran}) {
    if (given != nullptr) {
      require_selection(*given, shape);
    }
  }
  const auto sampled = oracle::checked_tokens(tokens, shape.num_tokens);
  const auto d = static_cast<std::size_t>(shape.hidden_size);
  SystemOracle layer{select(inputs, sampled), std::vector<double>(sampled.size() * d), shape.hidden_size, {}};
  std::vector<RoundingSums> sums(sampled.size());
  const auto& routing = layer.routing;
#pragma omp parallel for schedule(dynamic)
  for (std::size_t t = 0; t < sampled.size(); ++t) {
    const Vector x = row_of(inputs.hidden_states, sampled[t]);
    Vector y(d, 0.0);
    TokenRounding rounding(shape.hidden_size);
    const auto heads = shape.has_routing() ? static_cast<std::size_t>(shape.heads) : 0;
    for (std::size_t query = t * heads; query < (t + 1) * heads; ++query) {
      const bool own = selection == nullptr || inputs.fixed_routing;
      const auto ids = own ? routing.ids_of(query) : selection->ids_of(routing.tokens[query]);
      const auto own_gates = routing.gates_of(query);
      const Vector gates =
          own ? Vector(own_gates.begin(), own_gates.end())
              : oracle::gates_of_scores(routing, static_cast<std::int64_t>(query), ids, shape.gate_mode);
      if (ran != nullptr) {
        add_ran(inputs, x, routing, query, {ids, gates, ran->ids_of(routing.tokens[query])}, y, rounding);
        continue;
      }
      for (std::size_t k = 0; k < ids.size(); ++k) {
        add_expert(inputs, x, ids[k], gates[k], y, rounding);
      }
    }
    if (inputs.weights->shared) {
      oracle::add_gated_mlp(x, oracle::whole_mlp(*inputs.weights->shared), shape.activation, 1, y, rounding);
    }
    sums[t] = rounding.finish(y);
    std::copy(y.begin(), y.end(), layer.y.begin() + static_cast<std::ptrdiff_t>(t * d));
  }
  for (const RoundingSums& one : sums) {
    layer.rounding += one;
  }
  return layer;
}

std::function<ErrorReport(const HostTensor& output, const Routing& routing)> system_judge(
    const SystemInputs& inputs, std::int64_t sampled_tokens) {
  return [&inputs, tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens)](const HostTensor& output,
                                                                                    const Routing& routing) {
    return compare(gather_rows(output, tokens), system_oracle(inputs, tokens, &routing).view());
  };
}

std::function<ErrorReport(const HostTensor& output, const Routing& routing,
                          const TokenAssignment& assignment)>
system_assigned_judge(const SystemInputs& inputs, std::int64_t sampled_tokens) {
  return [&inputs, tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens)](
             const HostTensor& output, const Routing& routing, const TokenAssignment& assignment) {
    return compare(gather_rows(output, tokens),
                   system_oracle(inputs, tokens, &routing, &assignment.routing).view());
  };
}

double system_tolerance(const SystemShape& shape, const SystemOracle& oracle) {
  return sample_tolerance(
      shape.dtype, shape.hidden_size + shape.top_k + shape.expert_size + shape.shared_size + shape.key_size,
      oracle.rounding);
}

std::string SystemCheck::describe() const {
  if (!selection.ok()) {
    return fmt::format("{} of {} pairs wrong, first {}", selection.wrong, selection.compared_pairs,
                       selection.first_wrong);
  }
  if (!assignment_fault.empty()) {
    return assignment_fault;
  }
  std::string text = fmt::format("{}, tolerance {:.2g}{}; {} near-ties", error.describe(), tolerance,
                                 repeats ? "" : ", and a second run differs", selection.near_ties);
  if (dropless_error) {
    text += fmt::format("; {}: {} of {} pairs dropped, {} added, error against all pairs {:.3g}",
                        to_string(tokens), dropped_pairs, chosen_pairs, added_pairs,
                        dropless_error->relative_error);
  }
  return text;
}

SystemCheck check_system(MoeBackend& backend, const SystemInputs& inputs, std::int64_t sampled_tokens) {
  const auto tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens);
  const auto execution = backend.prepare_ruled_system(inputs);
  execution->run(L2State::kWarm);
  const HostTensor output = execution->output();
  const Routing routing = execution->routing();
  const TokenAssignment* const assignment = execution->assignment();
  const SystemOracle truth =
      system_oracle(inputs, tokens, &routing, assignment != nullptr ? &assignment->routing : nullptr);
  SystemCheck check;
  check.selection = inputs.fixed_routing ? compare_with_fixed(routing, *inputs.fixed_routing)
                                         : compare_selection(routing, truth.routing);
  check.error = compare(gather_rows(output, tokens), truth.view());
  check.tolerance = system_tolerance(inputs.shape, truth);
  check.ran = execution->schedule_options().kind;
  check.tokens = execution->schedule_options().tokens;
  if (assignment != nullptr) {
    check.assignment_fault = fault_of(*assignment, routing, inputs.tokens, truth.routing);
    check.chosen_pairs = assignment->chosen_pairs;
    check.dropped_pairs = assignment->dropped_pairs;
    check.added_pairs = assignment->added_pairs;
    check.dropless_error =
        compare(gather_rows(output, tokens), system_oracle(inputs, tokens, &routing).view());
  }
  if (execution->deterministic()) {
    execution->run(L2State::kWarm);
    check.repeats = same_bits(output, execution->output());
  }
  return check;
}

}  // namespace moescope
