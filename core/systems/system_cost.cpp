// Analytic traffic and FLOP of the baselines, by the conventions of traffic_terms.hpp. H = heads, n =
// sqrt(N), k = key_size, f = expert_size, M = pairs.
#include "core/systems/system_cost.hpp"

#include <fmt/format.h>

#include <utility>

#include "core/base/error.hpp"
#include "core/cost/traffic_terms.hpp"
#include "core/systems/system_traits.hpp"
#include "core/tiling/chunks.hpp"

namespace moescope {
namespace {

class SystemTerms {
 public:
  SystemTerms(const SystemShape& shape, const Routing& routing, const TokenAssignment* assignment = nullptr)
      : shape_(shape),
        routing_(routing),
        assignment_(assignment),
        terms_(shape.row_shape(), routing),
        element_(dtype_bytes(shape.dtype)) {
    terms_.offsets_bytes = checked_product({shape.num_queries() + 1, kOffsetBytes});
  }

  AnalyticCost take() { return std::move(terms_.cost); }

  void ffn_router() {
    const auto logits = checked_product({shape_.num_tokens, shape_.num_experts, kFp32Bytes});
    const auto weights = checked_product({shape_.num_experts, terms_.row_bytes});
    terms_.both(Stage::kRouterProject, kRead, terms_.x_bytes, "X");       // L d
    terms_.both(Stage::kRouterProject, kRead, weights, "router");         // N d
    terms_.both(Stage::kRouterProject, kWrite, logits, "router logits");  // L N fp32
    const auto dots = checked_product({2, shape_.num_tokens, shape_.hidden_size, shape_.num_experts});
    terms_.flop(Stage::kRouterProject, dots, dots);  // [L, d] x [d, N]
    select(logits);
  }

  void ffn_experts() {
    const auto pairs = ran().num_pairs();
    // Without a rule M' = M; under a capacity rows are N C, all experts' weights are read.
    const auto rows = has_capacity() ? executed_rows(*assignment_) : pairs;
    const auto f = shape_.expert_size;
    const auto ids = checked_product({pairs, kIdBytes});
    // A token and a pair id per pair, an offset per expert.
    const auto permutation = 2 * ids + checked_product({shape_.num_experts + 1, kOffsetBytes});
    terms_.both(Stage::kSchedule, kRead, terms_.ids_bytes, "expert_ids");  // M
    if (assignment_ != nullptr) {
      terms_.both(Stage::kSchedule, kRead, terms_.gates_bytes, "gates");  // M fp32: who comes first
      if (needs_probabilities(assignment_->rule)) {
        terms_.both(Stage::kSchedule, kRead,
                    checked_product({shape_.num_tokens, shape_.num_experts, kFp32Bytes}),
                    "router logits");  // L N fp32
      }
    }
    terms_.both(Stage::kSchedule, kWrite, permutation, "permutation");        // 2 M' + N + 1
    terms_.both(Stage::kExperts, kRead, permutation, "permutation");          // 2 M' + N + 1
    terms_.both(Stage::kExperts, kRead, ids, "gates");                        // M' fp32
    terms_.both(Stage::kExperts, kRead, active_weights(), "active experts");  // 3 E_active f d
    if (has_capacity()) {
      terms_.both(Stage::kExperts, kRead, all_ffn_weights() - active_weights(),
                  "inactive experts");  // 3 (N - E_active) f d
    }
    terms_.both(Stage::kExperts, kWrite, terms_.x_bytes, "Y");  // L d
    const auto hidden = checked_product({rows, f, element_});
    const auto results = checked_product({rows, shape_.hidden_size, kFp32Bytes});
    terms_.hbm(Stage::kExperts, kRead, terms_.x_bytes, "X");                                      // L d
    terms_.l2(Stage::kExperts, kRead, checked_product({pairs, terms_.row_bytes}), "X of pairs");  // M d
    terms_.l2(Stage::kExperts, kWrite, hidden, "hidden activations");                             // M f
    terms_.l2(Stage::kExperts, kRead, hidden, "hidden activations");                              // M f
    terms_.l2(Stage::kExperts, kWrite, results, "results of pairs");                              // M d fp32
    terms_.l2(Stage::kExperts, kRead, checked_product({pairs, shape_.hidden_size, kFp32Bytes}),
              "results of pairs");  // M' d fp32
    ffn_flop(rows);
  }

  /// Each token by itself: nothing is sorted, and weights are read for every pair.
  void ffn_of_tokens() {
    const auto pairs = routing_.num_pairs();
    const auto weights = checked_product({3, pairs, shape_.expert_size, terms_.row_bytes});
    ffn_ends();
    terms_.both(Stage::kExperts, kRead, terms_.x_bytes, "X");                // L d
    terms_.hbm(Stage::kExperts, kRead, active_weights(), "active experts");  // 3 E_active f d
    terms_.l2(Stage::kExperts, kRead, weights, "experts of pairs");          // 3 M f d
    ffn_flop(pairs);
  }

  /// All experts for every token, and what was not selected thrown away.
  void ffn_of_all() {
    const auto rows = checked_product({shape_.num_tokens, shape_.num_experts});
    const auto all = all_ffn_weights();
    const auto hidden = checked_product({rows, shape_.expert_size, element_});
    ffn_ends();
    terms_.both(Stage::kExperts, kRead, terms_.x_bytes, "X");                        // L d
    terms_.hbm(Stage::kExperts, kRead, active_weights(), "active experts");          // 3 E_active f d
    terms_.hbm(Stage::kExperts, kRead, all - active_weights(), "inactive experts");  // 3 (N - E_active) f d
    terms_.l2(Stage::kExperts, kRead, all, "experts");                               // 3 N f d
    terms_.l2(Stage::kExperts, kWrite, hidden, "hidden activations");                // L N f
    terms_.l2(Stage::kExperts, kRead, hidden, "hidden activations");                 // L N f
    ffn_flop(rows);
  }

  void product_keys() {
    const auto width = 2 * shape_.heads * shape_.key_size;
    const auto n = shape_.num_keys();
    const auto queries = checked_product({shape_.num_tokens, width, element_});
    const auto keys = checked_product({width, n, element_});
    const auto scores = checked_product({shape_.num_queries(), 2, n, kFp32Bytes});
    terms_.both(Stage::kRouterProject, kRead, terms_.x_bytes, "X");                               // L d
    terms_.both(Stage::kRouterProject, kRead, checked_product({width, terms_.row_bytes}), "Wq");  // 2 H k d
    terms_.both(Stage::kRouterProject, kRead, keys, "sub-keys");                                  // 2 H k n
    terms_.both(Stage::kRouterProject, kWrite, scores, "scores of sub-keys");  // 2 L H n fp32
    terms_.l2(Stage::kRouterProject, kWrite, queries, "queries");              // 2 L H k
    terms_.l2(Stage::kRouterProject, kRead, queries, "queries");               // 2 L H k
    // [L, d] x [d, 2 H k], then for every head and half [L, k] x [k, n].
    const auto dots = checked_product({2, shape_.num_tokens, width, shape_.hidden_size + n});
    terms_.flop(Stage::kRouterProject, dots, dots);
    select(scores);
  }

  /// Values of pkm, or w_in and w_out of peer.
  void gathered_experts() {
    const bool scored = shape_.has_neurons();
    const auto stage = scored ? Stage::kExperts : Stage::kExpertCombine;
    const auto pairs = routing_.num_pairs();
    const auto matrices = scored ? 2 : 1;
    terms_.both(stage, kRead, terms_.ids_bytes, "expert_ids");  // M
    terms_.both(stage, kRead, terms_.gates_bytes, "gates");     // M fp32
    terms_.both(stage, kWrite, terms_.x_bytes, "Y");            // L d
    if (scored) {
      terms_.both(stage, kRead, terms_.x_bytes, "X");  // L d
    }
    terms_.hbm(stage, kRead, active_weights(), "active experts");  // E_active d, of peer twice
    terms_.l2(stage, kRead, checked_product({matrices, pairs, terms_.row_bytes}),
              "experts of pairs");  // M d, of peer twice
    const auto flop = checked_product({2, matrices, pairs, shape_.hidden_size});
    terms_.flop(stage, flop, flop);  // x . w_in where there is one, then the sum
  }

  /// The same as products with all experts; what a head adds to another's choice is in the gates' sum.
  void masked_experts() {
    const bool scored = shape_.has_neurons();
    const auto stage = scored ? Stage::kExperts : Stage::kExpertCombine;
    const auto matrices = scored ? 2 : 1;
    constexpr Dtype scores = DenseChunks::kScores;
    const auto all = checked_product({matrices, shape_.num_experts, terms_.row_bytes});
    const auto needed = active_weights();
    terms_.both(stage, kRead, terms_.ids_bytes, "expert_ids");   // M
    terms_.both(stage, kRead, terms_.gates_bytes, "gates");      // M fp32
    terms_.both(stage, kWrite, terms_.x_bytes, "Y");             // L d
    terms_.hbm(stage, kRead, needed, "active experts");          // E_active d, of peer twice
    terms_.hbm(stage, kRead, all - needed, "inactive experts");  // (N - E_active) d, of peer twice
    terms_.l2(stage, kRead, all, "experts");                     // N d, of peer twice
    if (scored) {
      terms_.both(stage, kRead, terms_.x_bytes, "X");  // L d
      terms_.l2(stage, kWrite, checked_product({shape_.num_tokens, shape_.num_experts, dtype_bytes(scores)}),
                "score matrix");  // L N
      terms_.l2(stage, kRead, checked_product({routing_.num_pairs(), dtype_bytes(scores)}),
                "scores of pairs");  // M
    }
    const auto p = checked_product({shape_.num_tokens, shape_.num_experts, element_});
    terms_.l2(stage, kWrite, p, "P");  // L N
    terms_.l2(stage, kRead, p, "P");   // L N
    terms_.flop(stage, checked_product({2, matrices, routing_.num_pairs(), shape_.hidden_size}),
                checked_product({2, matrices, shape_.num_tokens, shape_.num_experts, shape_.hidden_size}));
  }

  void dense_branch() { add_shared_mlp(terms_, shape_.row_shape(), shape_.has_routing()); }

  std::int64_t active_weights() const {
    const auto active = count_active_experts(ran());
    if (shape_.has_ffn_experts()) {
      return checked_product({3, active, shape_.expert_size, terms_.row_bytes});
    }
    return checked_product({shape_.has_neurons() ? 2 : 1, active, terms_.row_bytes});
  }

  std::int64_t floor_bytes() const {
    const auto x = traits_of(shape_.system).experts == ExpertKind::kValue ? 0 : terms_.x_bytes;
    return active_weights() + x + terms_.x_bytes;
  }

  /// The pairs that run.
  const Routing& ran() const { return assignment_ != nullptr ? assignment_->routing : routing_; }

 private:
  bool has_capacity() const {
    return assignment_ != nullptr && assignment_->rule.kind == TokenRuleKind::kCapacity;
  }
  std::int64_t all_ffn_weights() const {
    return checked_product({3, shape_.num_experts, shape_.expert_size, terms_.row_bytes});
  }

  void ffn_ends() {
    terms_.both(Stage::kExperts, kRead, terms_.ids_bytes, "expert_ids");  // M
    terms_.both(Stage::kExperts, kRead, terms_.gates_bytes, "gates");     // M fp32
    terms_.both(Stage::kExperts, kWrite, terms_.x_bytes, "Y");            // L d
  }

  /// Three products of [rows, d] x [d, f], and the sum of as many results; M of them count.
  void ffn_flop(std::int64_t rows) {
    const auto of = [&](std::int64_t count) {
      return checked_product({6, count, shape_.expert_size, shape_.hidden_size}) +
             checked_product({2, count, shape_.hidden_size});
    };
    terms_.flop(Stage::kExperts, of(ran().num_pairs()), of(rows));
  }

  void select(std::int64_t logits_bytes) {
    terms_.both(Stage::kRouterSelect, kRead, logits_bytes, "logits");                  // as written
    terms_.both(Stage::kRouterSelect, kWrite, terms_.offsets_bytes, "token_offsets");  // L H + 1
    terms_.both(Stage::kRouterSelect, kWrite, terms_.ids_bytes, "expert_ids");         // M
    terms_.both(Stage::kRouterSelect, kWrite, terms_.gates_bytes, "gates");            // M fp32
  }

  const SystemShape& shape_;
  const Routing& routing_;             ///< the router's choice
  const TokenAssignment* assignment_;  ///< what a rule left of it, or null
  TermWriter terms_;
  std::int64_t element_;
};

void check_fit(const SystemShape& shape, const Routing& routing) {
  shape.validate();
  const LayerShape row = shape.row_shape();
  if (routing.num_tokens != shape.num_queries() || routing.grid_rows != row.grid_rows ||
      routing.grid_cols != row.grid_cols) {
    throw InvalidArgument(
        "routing",
        fmt::format("{} rows, grid {} x {}", routing.num_tokens, routing.grid_rows, routing.grid_cols),
        fmt::format("must have {} rows, grid {} x {} for {}", shape.num_queries(), row.grid_rows,
                    row.grid_cols, shape.label()));
  }
}

void check_rule(const SystemShape& shape, const ScheduleOptions& schedule,
                const TokenAssignment* assignment) {
  const bool has = assignment != nullptr || !schedule.tokens.every();
  if (has && (!traits_of(shape.system).token_rules || schedule.kind != ScheduleKind::kExpertCentric)) {
    throw InvalidArgument("schedule", to_string(schedule),
                          fmt::format("is none of {}", to_string(shape.system)));
  }
}

}  // namespace

std::vector<Stage> system_stages(System system) {
  const auto stages = traits_of(system).stages;
  if (stages.empty()) {
    throw InternalError(fmt::format("{}'s stages depend on its schedule", to_string(system)));
  }
  return {stages.begin(), stages.end()};
}

std::vector<Stage> system_stages(System system, bool fixed_routing) {
  std::vector<Stage> stages = system_stages(system);
  if (fixed_routing) {
    std::erase_if(stages, [](Stage s) { return s == Stage::kRouterProject || s == Stage::kRouterSelect; });
  }
  return stages;
}

AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing) {
  return analytic_cost(shape, routing, system_schedule(shape.system).kind);
}

AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing, ScheduleKind kind,
                           bool fixed_routing) {
  return analytic_cost(shape, routing, {.kind = kind}, nullptr, fixed_routing);
}

AnalyticCost analytic_cost(const SystemShape& shape, const Routing& routing, const ScheduleOptions& schedule,
                           const TokenAssignment* assignment, bool fixed_routing) {
  check_fit(shape, routing);
  check_rule(shape, schedule, assignment);
  const ScheduleKind kind = schedule.kind;
  const bool masked = shape.has_product_keys() && kind == ScheduleKind::kDenseMasked;
  if (!traits_of(shape.system).has(kind)) {
    throw InvalidArgument("schedule", to_string(kind), fmt::format("is none of {}", to_string(shape.system)));
  }
  SystemTerms terms(shape, routing, assignment);
  if (shape.has_ffn_experts()) {
    if (!fixed_routing) {
      terms.ffn_router();
    }
    switch (kind) {
      case ScheduleKind::kTokenCentric:
        terms.ffn_of_tokens();
        break;
      case ScheduleKind::kDenseMasked:
        terms.ffn_of_all();
        break;
      default:
        terms.ffn_experts();
    }
  }
  if (shape.has_product_keys()) {
    if (!fixed_routing) {
      terms.product_keys();
    }
    if (masked) {
      terms.masked_experts();
    } else {
      terms.gathered_experts();
    }
  }
  if (shape.shared_size > 0) {
    terms.dense_branch();
  }
  return terms.take();
}

FfnRows ffn_rows(const SystemShape& shape, const Routing& routing, const ScheduleOptions& schedule,
                 const TokenAssignment* assignment) {
  check_fit(shape, routing);
  check_rule(shape, schedule, assignment);
  if (assignment != nullptr) {
    return {assignment->routing.num_pairs(), executed_rows(*assignment)};
  }
  const std::int64_t pairs = routing.num_pairs();
  switch (schedule.kind) {
    case ScheduleKind::kTokenCentric:
      return {pairs, pairs};
    case ScheduleKind::kDenseMasked:
      return {pairs, checked_product({shape.num_tokens, shape.num_experts})};
    default:
      return {pairs, executed_rows(routing, kGroupedTile)};
  }
}

std::int64_t expert_floor_bytes(const SystemShape& shape, const Routing& routing) {
  check_fit(shape, routing);
  return shape.has_routing() ? SystemTerms(shape, routing).floor_bytes() : 0;
}

}  // namespace moescope
