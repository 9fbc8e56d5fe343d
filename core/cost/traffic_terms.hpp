#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "core/cost/traffic.hpp"

// Conventions of every term below:
// - Rows of W, V, X and the output are in the storage dtype; logits, gates, pair scores and accumulators are
// fp32.
// - kHbm: what is made and used up inside one stage (accumulators, the group's P) stays in the infinite
// cache.
//   What passes from one stage to the next is written by the first and read by the second.
// - kL2: a work item loads its own rows once; the dense products (router, shared MLP) are one item each.
// - FLOP: a multiply-add is 2. Exponentials, sigma, comparisons and the gate's product are not counted: they
// are
//   O(1) per pair beside O(d).

namespace moescope {

inline constexpr Access kRead = Access::kRead;
inline constexpr Access kWrite = Access::kWrite;

inline constexpr std::int64_t kFp32Bytes = 4;
inline constexpr std::int64_t kIdBytes = 4;      ///< expert ids
inline constexpr std::int64_t kOffsetBytes = 8;  ///< CSR offsets

/// Product of extents; throws InvalidArgument at 2^57, so that sums of a few terms stay inside 63 bits.
std::int64_t checked_product(std::initializer_list<std::int64_t> factors);

/// Throws InvalidArgument unless the routing is one of this shape.
void require_fit(const LayerShape& shape, const Routing& routing);

/// E_active: experts with at least one pair.
std::int64_t count_active_experts(const Routing& routing);

/// What a schedule's items add up to.
struct ItemSums {
  std::int64_t token_rows = 0;       ///< (item, token) entries: rows of X gathered, rows of Y added to
  std::int64_t expert_rows = 0;      ///< experts summed over the items: rows of W loaded
  std::int64_t products = 0;         ///< tokens x experts summed over the items: dot products computed
  std::int64_t col_expert_rows = 0;  ///< of expert_rows those of column strips
  std::int64_t loaded_experts = 0;   ///< distinct experts that some item loads
  std::int64_t active_experts = 0;   ///< E_active
};

ItemSums sum_items(const Routing& routing, const Schedule& schedule);

/// Units of work of a schedule's strips as the kernels on strips cut them (core/tiling/strip_tiles.hpp).
std::int64_t strip_units(const Schedule& schedule, std::int64_t grid_rows, std::int64_t grid_cols);

/// Collects the terms of one layer and knows the sizes they are made of.
class TermWriter {
 public:
  TermWriter(const LayerShape& shape, const Routing& routing);

  void hbm(Stage stage, Access access, std::int64_t bytes, std::string_view what) {
    cost.traffic.push_back({stage, MemoryLevel::kHbm, access, bytes, what});
  }
  void l2(Stage stage, Access access, std::int64_t bytes, std::string_view what) {
    cost.traffic.push_back({stage, MemoryLevel::kL2, access, bytes, what});
  }
  void both(Stage stage, Access access, std::int64_t bytes, std::string_view what) {
    hbm(stage, access, bytes, what);
    l2(stage, access, bytes, what);
  }
  void flop(Stage stage, std::int64_t useful, std::int64_t executed) {
    cost.flop.push_back({stage, useful, executed});
  }

  AnalyticCost cost;
  std::int64_t row_bytes;      ///< one row of W, V, X or Y in storage dtype
  std::int64_t x_bytes;        ///< [L, d] in storage dtype: X or Y
  std::int64_t offsets_bytes;  ///< token_offsets [L + 1]
  std::int64_t ids_bytes;      ///< expert_ids [M]
  std::int64_t gates_bytes;    ///< gates, or any fp32 per pair [M]
};

/// Terms of the expert stage under the schedule (traffic_experts.cpp).
void add_expert_terms(TermWriter& terms, const LayerShape& shape, const Routing& routing,
                      const Schedule& schedule);

/// Terms of the router's forward, and of the schedule's lists (traffic.cpp).
void add_router_terms(TermWriter& terms, const LayerShape& shape);
void add_schedule_terms(TermWriter& terms, const Schedule& schedule);

/// Terms of the dense branch (traffic.cpp). `adds`: its result is added to a routed one.
void add_shared_mlp(TermWriter& terms, const LayerShape& shape, bool adds);

}  // namespace moescope
