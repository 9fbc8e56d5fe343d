#include "reference/oracle/oracle.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <numeric>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/oracle/oracle_math.hpp"

namespace moescope {
namespace {

using oracle::append_query;
using oracle::checked_tokens;
using oracle::gates_of_scores;
using oracle::log_softmax_of_logits;
using oracle::Marginal;
using oracle::require_selection;
using oracle::row_of;
using oracle::sigma;
using oracle::top_k_of_all;
using oracle::Vector;

/// Eq. 7 for sample t, and what is rounded on the way.
Vector layer_of_token(const LayerInputs& inputs, const Routing* selection, const OracleRouting& routing,
                      std::size_t t, RoundingSums& sums) {
  const Vector x = row_of(inputs.hidden_states, routing.tokens[t]);
  auto ids = routing.ids_of(t);
  const auto own_gates = routing.gates_of(t);
  Vector gates(own_gates.begin(), own_gates.end());
  if (selection != nullptr && !inputs.fixed_routing) {
    ids = selection->ids_of(routing.tokens[t]);
    gates = gates_of_scores(routing, static_cast<std::int64_t>(t), ids, inputs.shape.gate_mode);
  }
  Vector y(x.size(), 0.0);
  TokenRounding rounding(inputs.shape.hidden_size);
  for (std::size_t k = 0; k < ids.size(); ++k) {
    const oracle::Product in = oracle::product(x, row_of(inputs.experts->w_in, ids[k]));
    oracle::add_scored_row(gates[k] * sigma(inputs.shape.activation, in.value),
                           std::abs(gates[k]) * in.magnitude, row_of(inputs.experts->w_out, ids[k]), y,
                           rounding);
  }
  if (inputs.experts->shared) {
    oracle::add_gated_mlp(x, oracle::whole_mlp(*inputs.experts->shared), inputs.shape.activation, 1, y,
                          rounding);
  }
  sums = rounding.finish(y);
  return y;
}

}  // namespace

std::span<const std::int32_t> OracleRouting::ids_of(std::size_t t) const {
  return {expert_ids.data() + token_offsets[t], expert_ids.data() + token_offsets[t + 1]};
}

std::span<const double> OracleRouting::gates_of(std::size_t t) const {
  return {gates.data() + token_offsets[t], gates.data() + token_offsets[t + 1]};
}

double OracleRouting::score(std::int64_t t, std::int32_t expert_id) const {
  return row_log_p[static_cast<std::size_t>(t * grid_rows + expert_id / grid_cols)] +
         col_log_p[static_cast<std::size_t>(t * grid_cols + expert_id % grid_cols)];
}

OracleRouting oracle_routing(const LayerInputs& inputs, const std::vector<std::int64_t>& tokens) {
  const auto& shape = inputs.shape;
  OracleRouting routing;
  routing.tokens = checked_tokens(tokens, shape.num_tokens);
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets.push_back(0);
  if (inputs.fixed_routing) {
    for (const auto token : routing.tokens) {
      const auto gates = inputs.fixed_routing->gates_of(token);
      append_query(routing, inputs.fixed_routing->ids_of(token), Vector(gates.begin(), gates.end()));
    }
    return routing;
  }
  // Tokens side by side: over a router of one row that is N d products each, most of a point's time.
  const auto samples = std::ssize(routing.tokens);
  std::vector<Marginal> rows(routing.tokens.size());
  std::vector<Marginal> cols(routing.tokens.size());
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t t = 0; t < samples; ++t) {
    const auto at = static_cast<std::size_t>(t);
    const Vector x = row_of(inputs.hidden_states, routing.tokens[at]);
    rows[at] = log_softmax_of_logits(x, inputs.router.row, inputs.router.row_bias);
    cols[at] = log_softmax_of_logits(x, inputs.router.col, inputs.router.col_bias);
  }
  for (std::size_t t = 0; t < routing.tokens.size(); ++t) {
    const Marginal& row = rows[t];
    const Marginal& col = cols[t];
    routing.row_log_p.insert(routing.row_log_p.end(), row.log_p.begin(), row.log_p.end());
    routing.col_log_p.insert(routing.col_log_p.end(), col.log_p.begin(), col.log_p.end());
    routing.tolerance.push_back(selection_tolerance(
        shape.hidden_size, row.partial_sum_scale + col.partial_sum_scale, row.score_scale + col.score_scale));
  }
  routing.threshold.resize(routing.tokens.size());
  std::vector<std::vector<std::int32_t>> ids(routing.tokens.size());
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t t = 0; t < samples; ++t) {
    const auto at = static_cast<std::size_t>(t);
    ids[at] = top_k_of_all(routing, t, shape.top_k, routing.threshold[at]);
  }
  for (std::int64_t t = 0; t < samples; ++t) {
    const auto& selected = ids[static_cast<std::size_t>(t)];
    append_query(routing, selected, gates_of_scores(routing, t, selected, shape.gate_mode));
  }
  return routing;
}

OracleLayer oracle_layer(const LayerInputs& inputs, const OracleOptions& options) {
  if (options.selection != nullptr) {
    require_selection(*options.selection, inputs.shape);
  }
  const auto d = static_cast<std::size_t>(inputs.shape.hidden_size);
  OracleLayer layer{oracle_routing(inputs, options.tokens), {}, inputs.shape.hidden_size, {}};
  layer.y.resize(layer.routing.tokens.size() * d);
  std::vector<RoundingSums> sums(layer.routing.tokens.size());
#pragma omp parallel for schedule(dynamic)
  for (std::size_t t = 0; t < layer.routing.tokens.size(); ++t) {
    const Vector y = layer_of_token(inputs, options.selection, layer.routing, t, sums[t]);
    std::copy(y.begin(), y.end(), layer.y.begin() + static_cast<std::ptrdiff_t>(t * d));
  }
  for (const RoundingSums& one : sums) {
    layer.rounding += one;
  }
  return layer;
}

SelectionReport compare_selection(const Routing& ours, const OracleRouting& oracle) {
  SelectionReport report;
  for (std::size_t t = 0; t < oracle.tokens.size(); ++t) {
    const auto mine = ours.ids_of(oracle.tokens[t]);
    const auto theirs = oracle.ids_of(t);
    report.compared_pairs += std::ssize(mine);
    std::vector<std::int32_t> different;
    std::set_symmetric_difference(mine.begin(), mine.end(), theirs.begin(), theirs.end(),
                                  std::back_inserter(different));
    for (const auto id : different) {
      if (oracle.threshold.empty()) {  // fixed routing has no scores: any difference is an error
        if (++report.wrong == 1) {
          report.first_wrong =
              fmt::format("token {}, expert {}: differs from the fixed routing", oracle.tokens[t], id);
        }
        continue;
      }
      const double score = oracle.score(static_cast<std::int64_t>(t), id);
      if (mine.size() == theirs.size() && std::abs(score - oracle.threshold[t]) <= oracle.tolerance[t]) {
        ++report.near_ties;
        continue;
      }
      if (++report.wrong == 1) {
        report.first_wrong =
            fmt::format("token {}, expert {}: score {} against threshold {} (tolerance {:.2g})",
                        oracle.tokens[t], id, score, oracle.threshold[t], oracle.tolerance[t]);
      }
    }
  }
  return report;
}

std::vector<std::int64_t> spread_tokens(std::int64_t num_tokens, std::int64_t count) {
  const auto taken = std::min(num_tokens, count);
  std::vector<std::int64_t> tokens;
  for (std::int64_t t = 0; t < taken; ++t) {
    tokens.push_back(taken == 1 ? 0 : t * (num_tokens - 1) / (taken - 1));
  }
  return tokens;
}

HostTensor gather_rows(const HostTensor& tensor, const std::vector<std::int64_t>& rows) {
  HostTensor gathered(tensor.dtype(), std::ssize(rows), tensor.cols());
  const auto row_bytes = static_cast<std::size_t>(tensor.cols() * dtype_bytes(tensor.dtype()));
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::memcpy(gathered.data() + r * row_bytes,
                tensor.data() + static_cast<std::size_t>(rows[r]) * row_bytes, row_bytes);
  }
  return gathered;
}

}  // namespace moescope
