#include "core/cost/traffic.hpp"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/error.hpp"
#include "core/cost/traffic_terms.hpp"

namespace moescope {

namespace {

bool counts(Stage asked, Stage stage) { return asked == stage || asked == Stage::kLayer; }

}  // namespace

void add_router_terms(TermWriter& terms, const LayerShape& shape) {
  const std::int64_t sides = shape.grid_rows + shape.grid_cols;
  const std::int64_t logits = checked_product({shape.num_tokens, sides, kFp32Bytes});
  const std::int64_t row_weights = checked_product({shape.grid_rows, terms.row_bytes});
  const std::int64_t col_weights = checked_product({shape.grid_cols, terms.row_bytes});
  terms.both(Stage::kRouterProject, kRead, terms.x_bytes, "X");                // L d
  terms.both(Stage::kRouterProject, kRead, row_weights, "Wr");                 // Nr d
  terms.both(Stage::kRouterProject, kRead, col_weights, "Wc");                 // Nc d
  terms.both(Stage::kRouterProject, kWrite, logits, "row and column logits");  // L (Nr + Nc) fp32
  // One product of [L, d] x [d, Nr + Nc]: 2 L d (Nr + Nc).
  const std::int64_t dots = checked_product({2, shape.num_tokens, shape.hidden_size, sides});
  terms.flop(Stage::kRouterProject, dots, dots);

  terms.both(Stage::kRouterSelect, kRead, logits, "row and column logits");        // L (Nr + Nc) fp32
  terms.both(Stage::kRouterSelect, kWrite, terms.offsets_bytes, "token_offsets");  // L + 1
  terms.both(Stage::kRouterSelect, kWrite, terms.ids_bytes, "expert_ids");         // M
  terms.both(Stage::kRouterSelect, kWrite, terms.gates_bytes, "gates");            // M fp32
}

void add_schedule_terms(TermWriter& terms, const Schedule& schedule) {
  terms.both(Stage::kSchedule, kRead, terms.offsets_bytes, "token_offsets");  // L + 1
  terms.both(Stage::kSchedule, kRead, terms.ids_bytes, "expert_ids");         // M
  terms.both(Stage::kSchedule, kWrite, schedule.bytes(), "schedule arrays");  // Schedule::bytes()
}

void require_fit(const LayerShape& shape, const Routing& routing) {
  shape.validate();
  const auto check = [](std::string_view field, std::int64_t value, std::int64_t expected) {
    if (value == expected) return;
    throw InvalidArgument(field, fmt::to_string(value),
                          fmt::format("must be {} as in the routing", expected));
  };
  check("num_tokens", shape.num_tokens, routing.num_tokens);
  check("grid_rows", shape.grid_rows, routing.grid_rows);
  check("grid_cols", shape.grid_cols, routing.grid_cols);
}

std::int64_t checked_product(std::initializer_list<std::int64_t> factors) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 57;
  std::int64_t result = 1;
  for (const std::int64_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result) || result > kLimit) {
      throw InvalidArgument("shape", fmt::format("{}", fmt::join(factors, " * ")),
                            "a traffic or flop term must stay below 2^57");
    }
  }
  return result;
}

std::int64_t count_active_experts(const Routing& routing) {
  const std::vector<std::int64_t> loads = expert_loads(routing);
  return std::count_if(loads.begin(), loads.end(), [](std::int64_t load) { return load > 0; });
}

TermWriter::TermWriter(const LayerShape& shape, const Routing& routing)
    : row_bytes(checked_product({shape.hidden_size, dtype_bytes(shape.dtype)})),
      x_bytes(checked_product({shape.num_tokens, row_bytes})),
      offsets_bytes(checked_product({shape.num_tokens + 1, kOffsetBytes})),
      ids_bytes(checked_product({routing.num_pairs(), kIdBytes})),
      gates_bytes(checked_product({routing.num_pairs(), kFp32Bytes})) {}

void add_shared_mlp(TermWriter& terms, const LayerShape& shape, bool adds) {
  const std::int64_t weights = checked_product({shape.shared_size, terms.row_bytes});
  const std::int64_t hidden =
      checked_product({shape.num_tokens, shape.shared_size, dtype_bytes(shape.dtype)});
  terms.both(Stage::kSharedMlp, kRead, terms.x_bytes, "X");                    // L d
  terms.both(Stage::kSharedMlp, kRead, weights, "gate weights");               // h d
  terms.both(Stage::kSharedMlp, kRead, weights, "up weights");                 // h d
  terms.both(Stage::kSharedMlp, kRead, weights, "down weights");               // h d
  terms.l2(Stage::kSharedMlp, kWrite, 2 * hidden, "gate and up activations");  // 2 L h
  terms.l2(Stage::kSharedMlp, kRead, 2 * hidden, "gate and up activations");   // 2 L h
  terms.l2(Stage::kSharedMlp, kWrite, hidden, "hidden activations");           // L h
  terms.l2(Stage::kSharedMlp, kRead, hidden, "hidden activations");            // L h
  if (adds) {
    terms.both(Stage::kSharedMlp, kRead, terms.x_bytes, "routed Y to add to");  // L d
  }
  terms.both(Stage::kSharedMlp, kWrite, terms.x_bytes, "Y");  // L d
  // Three products of [L, d] x [d, h]: 6 L d h.
  const std::int64_t products = checked_product({6, shape.num_tokens, shape.hidden_size, shape.shared_size});
  terms.flop(Stage::kSharedMlp, products, products);
}

std::string_view to_string(MemoryLevel level) { return level == MemoryLevel::kHbm ? "hbm" : "l2"; }
std::string_view to_string(Access access) { return access == Access::kRead ? "read" : "write"; }

std::int64_t AnalyticCost::bytes(Stage stage, MemoryLevel level, Access access) const {
  std::int64_t sum = 0;
  for (const TrafficTerm& term : traffic) {
    if (counts(stage, term.stage) && term.level == level && term.access == access) sum += term.bytes;
  }
  return sum;
}

std::int64_t AnalyticCost::bytes(Stage stage, MemoryLevel level) const {
  return bytes(stage, level, Access::kRead) + bytes(stage, level, Access::kWrite);
}

std::int64_t AnalyticCost::useful_flop(Stage stage) const {
  std::int64_t sum = 0;
  for (const FlopCount& count : flop) sum += counts(stage, count.stage) ? count.useful_flop : 0;
  return sum;
}

std::int64_t AnalyticCost::executed_flop(Stage stage) const {
  std::int64_t sum = 0;
  for (const FlopCount& count : flop) sum += counts(stage, count.stage) ? count.executed_flop : 0;
  return sum;
}

AnalyticCost analytic_cost(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           bool fixed_routing) {
  require_fit(shape, routing);
  TermWriter terms(shape, routing);
  if (!fixed_routing) add_router_terms(terms, shape);
  add_schedule_terms(terms, schedule);
  add_expert_terms(terms, shape, routing, schedule);
  if (shape.shared_size > 0) add_shared_mlp(terms, shape, true);
  terms.cost.strip_units = strip_units(schedule, routing.grid_rows, routing.grid_cols);
  return std::move(terms.cost);
}

std::int64_t expert_floor_bytes(const LayerShape& shape, const Routing& routing) {
  require_fit(shape, routing);
  const std::int64_t rows = 2 * count_active_experts(routing) + 2 * routing.num_tokens;  // W, V; X, Y
  return checked_product({rows, shape.hidden_size, dtype_bytes(shape.dtype)});
}

}  // namespace moescope
