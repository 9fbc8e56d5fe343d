#include <algorithm>
#include <vector>

#include "core/base/error.hpp"
#include "core/cost/traffic_terms.hpp"
#include "core/tiling/chunks.hpp"
#include "core/tiling/strip_tiles.hpp"

namespace moescope {

ItemSums sum_items(const Routing& routing, const Schedule& schedule) {
  ItemSums sums;
  sums.active_experts = count_active_experts(routing);
  std::vector<bool> row_loaded(static_cast<std::size_t>(routing.grid_rows), false);
  std::vector<bool> col_loaded(static_cast<std::size_t>(routing.grid_cols), false);
  bool all_loaded = false;
  for (const WorkItem& item : schedule.items) {
    const std::int64_t tokens = item.token_end - item.token_begin;
    std::int64_t experts = 0;
    switch (item.kind) {
      case WorkItemKind::kToken:  // one token: as many experts as it has pairs
        experts = schedule.pair_offsets[item.token_end] - schedule.pair_offsets[item.token_begin];
        break;
      case WorkItemKind::kGroup:
        experts = item.expert_end - item.expert_begin;
        break;
      case WorkItemKind::kRowStrip:
        experts = routing.grid_cols;
        row_loaded[item.strip] = true;
        break;
      case WorkItemKind::kColStrip:
        experts = routing.grid_rows;
        col_loaded[item.strip] = true;
        sums.col_expert_rows += experts;
        break;
      case WorkItemKind::kAllExperts:
        experts = routing.num_experts();
        all_loaded = true;
        break;
    }
    sums.token_rows += tokens;
    sums.expert_rows += experts;
    sums.products += checked_product({tokens, experts});
  }
  // Tokens and groups load active experts only; a strip also loads the inactive ones in it.
  const std::int64_t rows = std::count(row_loaded.begin(), row_loaded.end(), true);
  const std::int64_t cols = std::count(col_loaded.begin(), col_loaded.end(), true);
  const std::int64_t in_strips = rows * routing.grid_cols + cols * routing.grid_rows - rows * cols;
  const std::int64_t grouped =
      std::count_if(schedule.experts.begin(), schedule.experts.end(), [&](std::int32_t expert) {
        return !row_loaded[expert / routing.grid_cols] && !col_loaded[expert % routing.grid_cols];
      });
  sums.loaded_experts = all_loaded                                  ? routing.num_experts()
                        : schedule.kind == ScheduleKind::kStaircase ? in_strips + grouped
                                                                    : sums.active_experts;
  return sums;
}

std::int64_t strip_units(const Schedule& schedule, std::int64_t grid_rows, std::int64_t grid_cols) {
  const std::int64_t segment = strip_segment_experts(grid_rows, grid_cols);
  const std::int64_t tile = schedule.options.tile_tokens;
  std::int64_t units = 0;
  for (const WorkItem& item : schedule.items) {
    if (item.kind == WorkItemKind::kRowStrip || item.kind == WorkItemKind::kColStrip) {
      const std::int64_t experts = item.kind == WorkItemKind::kRowStrip ? grid_cols : grid_rows;
      units += ceil_div(item.token_end - item.token_begin, tile) * ceil_div(experts, segment);
    }
  }
  return units;
}

namespace {

/// Writes the expert stage's terms; the symbols are those of DESIGN section 1.
class ExpertTerms {
 public:
  ExpertTerms(TermWriter& terms, const LayerShape& shape, const Routing& routing, const Schedule& schedule)
      : terms_(terms),
        shape_(shape),
        routing_(routing),
        schedule_(schedule),
        sums_(sum_items(routing, schedule)),
        pair_rows_bytes_(checked_product({routing.num_pairs(), terms.row_bytes})),
        accumulator_row_bytes_(checked_product({shape.hidden_size, kFp32Bytes})) {}

  void add() {
    switch (schedule_.kind) {
      case ScheduleKind::kTokenCentric:
        add_token_centric();
        break;
      case ScheduleKind::kExpertCentric:
        add_expert_centric();
        break;
      case ScheduleKind::kStaircase:
        add_staircase();
        break;
      case ScheduleKind::kDenseMasked:
        add_dense_masked();
        break;
      case ScheduleKind::kSparseLibrary:
        add_sparse_library();
        break;
      case ScheduleKind::kAuto:
        throw InternalError("analytic_cost was given a schedule of kind 'auto'");
    }
  }

 private:
  /// Compulsory reads of one weight matrix: the active rows, then what the schedule loads beside them.
  void add_weight_hbm(Stage stage, std::string_view active, std::string_view inactive) {
    const std::int64_t needed = checked_product({sums_.active_experts, terms_.row_bytes});
    const std::int64_t all = checked_product({sums_.loaded_experts, terms_.row_bytes});
    terms_.hbm(stage, kRead, needed, active);                            // E_active d
    if (all > needed) terms_.hbm(stage, kRead, all - needed, inactive);  // (loaded - E_active) d
  }

  /// Compulsory terms that token_centric, expert_centric and staircase share.
  void add_fused_hbm() {
    add_weight_hbm(Stage::kExperts, "W rows of active experts", "W rows of inactive experts in strips");
    add_weight_hbm(Stage::kExperts, "V rows of active experts", "V rows of inactive experts in strips");
    terms_.hbm(Stage::kExperts, kRead, terms_.x_bytes, "X");   // L d
    terms_.hbm(Stage::kExperts, kWrite, terms_.x_bytes, "Y");  // L d
  }

  /// 2 d for the dot product x . w_in, 2 d for adding p w_out.
  void add_fused_flop() {
    terms_.flop(Stage::kExperts, checked_product({4, shape_.hidden_size, routing_.num_pairs()}),
                checked_product({4, shape_.hidden_size, sums_.products}));
  }

  void add_token_centric() {
    add_fused_hbm();
    terms_.l2(Stage::kExperts, kRead, pair_rows_bytes_,
              "W row of every pair");  // M d
    terms_.l2(Stage::kExperts, kRead, pair_rows_bytes_,
              "V row of every pair");                         // M d
    terms_.l2(Stage::kExperts, kRead, terms_.x_bytes, "X");   // L d
    terms_.l2(Stage::kExperts, kWrite, terms_.x_bytes, "Y");  // L d: a token's sum stays in registers
    terms_.both(Stage::kExperts, kRead, terms_.offsets_bytes, "token_offsets");  // L + 1
    terms_.both(Stage::kExperts, kRead, terms_.ids_bytes, "expert_ids");         // M
    terms_.both(Stage::kExperts, kRead, terms_.gates_bytes, "gates");            // M fp32
    add_fused_flop();
  }

  /// Weights and tokens of groups or strips: each item loads its experts once and gathers its tokens.
  void add_item_terms() {
    const std::int64_t weights = checked_product({sums_.expert_rows, terms_.row_bytes});
    const std::int64_t gathered = checked_product({sums_.token_rows, terms_.row_bytes});
    terms_.l2(Stage::kExperts, kRead, weights, "W rows of every item");   // sum of experts, d
    terms_.l2(Stage::kExperts, kRead, weights, "V rows of every item");   // sum of experts, d
    terms_.l2(Stage::kExperts, kRead, gathered, "X rows of every item");  // sum of tokens, d
    terms_.both(Stage::kExperts, kRead, schedule_.bytes(), "schedule arrays");
    terms_.both(Stage::kExperts, kRead, terms_.ids_bytes, "expert_ids");  // M
    terms_.both(Stage::kExperts, kRead, terms_.gates_bytes, "gates");     // M fp32
  }

  /// Scatter-add into an fp32 Y that is cleared before and rounded after.
  void add_accumulate_l2() {
    const std::int64_t added = checked_product({sums_.token_rows, accumulator_row_bytes_});
    const std::int64_t whole = checked_product({shape_.num_tokens, accumulator_row_bytes_});
    terms_.l2(Stage::kExperts, kWrite, whole, "Y accumulator cleared");        // L d fp32
    terms_.l2(Stage::kExperts, kRead, added, "Y accumulator rows added to");   // sum of tokens, d fp32
    terms_.l2(Stage::kExperts, kWrite, added, "Y accumulator rows added to");  // sum of tokens, d fp32
    terms_.l2(Stage::kExperts, kRead, whole, "Y accumulator rounded");         // L d fp32
    terms_.l2(Stage::kExperts, kWrite, terms_.x_bytes, "Y");                   // L d
  }

  void add_expert_centric() {
    add_fused_hbm();
    add_item_terms();
    // P [distinct tokens, experts] of each group passes from the first grouped product to the second.
    const std::int64_t p_bytes = checked_product({sums_.products, dtype_bytes(shape_.dtype)});
    terms_.l2(Stage::kExperts, kWrite, p_bytes, "P of every group");  // sum of tokens x experts
    terms_.l2(Stage::kExperts, kRead, p_bytes, "P of every group");   // sum of tokens x experts
    add_accumulate_l2();
    add_fused_flop();
  }

  void add_staircase() {
    add_fused_hbm();
    add_item_terms();
    if (schedule_.options.deterministic) {
      // One partial row per (item, token), added up per token in a fixed order.
      const std::int64_t partial = checked_product({sums_.token_rows, accumulator_row_bytes_});
      terms_.l2(Stage::kExperts, kWrite, partial, "partial Y rows");  // sum of tokens, d fp32
      terms_.l2(Stage::kExperts, kRead, partial, "partial Y rows");   // sum of tokens, d fp32
      terms_.l2(Stage::kExperts, kWrite, terms_.x_bytes, "Y");        // L d
    } else {
      add_accumulate_l2();
    }
    add_fused_flop();
  }

  void add_dense_masked() {
    const std::int64_t all_rows = checked_product({routing_.num_experts(), terms_.row_bytes});
    const std::int64_t s_element = dtype_bytes(DenseChunks::kScores);
    const std::int64_t entries = checked_product({routing_.num_tokens, routing_.num_experts()});
    const std::int64_t s_bytes = checked_product({entries, s_element});
    const std::int64_t p_bytes = checked_product({entries, dtype_bytes(shape_.dtype)});
    add_weight_hbm(Stage::kExpertScores, "W rows of active experts", "W rows of inactive experts");
    terms_.l2(Stage::kExpertScores, kRead, all_rows, "W");                            // N d
    terms_.both(Stage::kExpertScores, kRead, terms_.x_bytes, "X");                    // L d
    terms_.both(Stage::kExpertScores, kRead, terms_.offsets_bytes, "token_offsets");  // L + 1
    terms_.both(Stage::kExpertScores, kRead, terms_.ids_bytes, "expert_ids");         // M
    terms_.both(Stage::kExpertScores, kRead, terms_.gates_bytes, "gates");            // M fp32
    terms_.both(Stage::kExpertScores, kWrite, s_bytes, "S");                          // L N fp32
    terms_.both(Stage::kExpertScores, kRead, checked_product({routing_.num_pairs(), s_element}),
                "S of pairs");                                // M fp32
    terms_.both(Stage::kExpertScores, kWrite, p_bytes, "P");  // L N
    terms_.both(Stage::kExpertCombine, kRead, p_bytes, "P");  // L N
    add_weight_hbm(Stage::kExpertCombine, "V rows of active experts", "V rows of inactive experts");
    terms_.l2(Stage::kExpertCombine, kRead, all_rows, "V");           // N d
    terms_.both(Stage::kExpertCombine, kWrite, terms_.x_bytes, "Y");  // L d
    add_unfused_flop();
  }

  /// SDDMM and SpMM gather like token_centric; gate and sigma are a pass over the scores between them.
  void add_sparse_library() {
    add_weight_hbm(Stage::kExpertScores, "W rows of active experts", {});
    terms_.l2(Stage::kExpertScores, kRead, pair_rows_bytes_,
              "W row of every pair");                                                    // M d
    terms_.both(Stage::kExpertScores, kRead, terms_.x_bytes, "X");                       // L d
    terms_.both(Stage::kExpertScores, kRead, terms_.offsets_bytes, "token_offsets");     // L + 1
    terms_.both(Stage::kExpertScores, kRead, terms_.ids_bytes, "expert_ids");            // M
    terms_.l2(Stage::kExpertScores, kWrite, terms_.gates_bytes, "scores before sigma");  // M fp32
    terms_.l2(Stage::kExpertScores, kRead, terms_.gates_bytes, "scores before sigma");   // M fp32
    terms_.both(Stage::kExpertScores, kRead, terms_.gates_bytes, "gates");               // M fp32
    terms_.both(Stage::kExpertScores, kWrite, terms_.gates_bytes, "scores");             // M fp32
    terms_.both(Stage::kExpertCombine, kRead, terms_.gates_bytes, "scores");             // M fp32
    terms_.both(Stage::kExpertCombine, kRead, terms_.offsets_bytes, "token_offsets");    // L + 1
    terms_.both(Stage::kExpertCombine, kRead, terms_.ids_bytes, "expert_ids");           // M
    add_weight_hbm(Stage::kExpertCombine, "V rows of active experts", {});
    terms_.l2(Stage::kExpertCombine, kRead, pair_rows_bytes_,
              "V row of every pair");                                 // M d
    terms_.both(Stage::kExpertCombine, kWrite, terms_.x_bytes, "Y");  // L d
    add_unfused_flop();
  }

  void add_unfused_flop() {
    const std::int64_t useful = checked_product({2, shape_.hidden_size, routing_.num_pairs()});
    const std::int64_t executed = checked_product({2, shape_.hidden_size, sums_.products});
    terms_.flop(Stage::kExpertScores, useful, executed);   // 2 d per dot product
    terms_.flop(Stage::kExpertCombine, useful, executed);  // 2 d per added row
  }

  TermWriter& terms_;
  const LayerShape& shape_;
  const Routing& routing_;
  const Schedule& schedule_;
  ItemSums sums_;
  std::int64_t pair_rows_bytes_;        ///< a row of W or V for every pair: M d
  std::int64_t accumulator_row_bytes_;  ///< one row of Y in fp32
};

}  // namespace

void add_expert_terms(TermWriter& terms, const LayerShape& shape, const Routing& routing,
                      const Schedule& schedule) {
  ExpertTerms(terms, shape, routing, schedule).add();
}

}  // namespace moescope
