// Analytic traffic and FLOP of the backward, by the conventions of traffic_terms.hpp. L, d, N, Nr, Nc, M, h
// as in DESIGN section 1; E = E_active; per schedule T = token entries, R = experts summed over the items and
// P = tokens x experts summed over the items. dX is summed in fp32 from stage to stage; what is an operand of
// a product (p, q, the logits' gradients) passes in storage dtype.
#include <algorithm>
#include <iterator>
#include <utility>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/cost/traffic_terms.hpp"
#include "core/layer/training.hpp"

namespace moescope {
namespace {

class BackwardTerms {
 public:
  BackwardTerms(const LayerShape& shape, const Routing& routing, const Schedule& schedule, bool fixed_routing,
                const TrainingOptions& training)
      : terms_(shape, routing),
        shape_(shape),
        schedule_(schedule),
        fixed_(fixed_routing),
        training_(training),
        sums_(sum_items(routing, schedule)),
        pairs_(routing.num_pairs()),
        sides_(shape.grid_rows + shape.grid_cols),
        element_(dtype_bytes(shape.dtype)),
        gradient_row_(
            checked_product({shape.hidden_size, dtype_bytes(training.gradient_dtype(shape.dtype))})),
        sums_bytes_(checked_product({shape.num_tokens, shape.hidden_size, kFp32Bytes})),
        logits_bytes_(checked_product({shape.num_tokens, sides_, kFp32Bytes})) {}

  AnalyticCost make() {
    if (shape_.shared_size > 0) shared_mlp();
    if (!fixed_ && training_.save == SaveMode::kMinimal) {
      add_router_terms(terms_, shape_);
      add_schedule_terms(terms_, schedule_);
    }
    dgrad();
    wgrad();
    if (!fixed_) {
      select();
      project();
    }
    if (training_.optimizer != OptimizerForm::kNone) {
      const std::int64_t rows =
          training_.optimizer == OptimizerForm::kDense ? shape_.num_experts() : sums_.active_experts;
      AnalyticCost step = optimizer_cost(shape_, rows, training_);
      std::ranges::move(step.traffic, std::back_inserter(terms_.cost.traffic));
    }
    return std::move(terms_.cost);
  }

 private:
  bool saved() const { return training_.save == SaveMode::kScores; }
  bool strips() const { return schedule_.kind == ScheduleKind::kStaircase; }
  bool dense() const { return schedule_.kind == ScheduleKind::kDenseMasked; }
  /// Rows gathered pair by pair.
  bool gathers() const {
    return schedule_.kind == ScheduleKind::kTokenCentric || schedule_.kind == ScheduleKind::kSparseLibrary;
  }
  /// Elements of an array over pairs: whole tiles where strips or all experts are matrices.
  std::int64_t pair_elements() const { return strips() || dense() ? sums_.products : pairs_; }
  std::int64_t pair_bytes() const { return checked_product({pair_elements(), element_}); }
  /// The gates' gradients on their way to the router: fp32 per pair, or a tile of h.
  std::int64_t gate_gradient_bytes() const { return strips() && !fixed_ ? pair_bytes() : terms_.gates_bytes; }

  void shared_mlp() {
    const Stage stage = Stage::kSharedMlpBackward;
    const auto weights = checked_product({shape_.shared_size, terms_.row_bytes});
    const auto hidden = checked_product({shape_.num_tokens, shape_.shared_size, element_});
    terms_.both(stage, kRead, terms_.x_bytes, "X");                       // L d
    terms_.l2(stage, kRead, terms_.x_bytes, "X for the weights");         // L d: once more, transposed
    terms_.both(stage, kRead, terms_.x_bytes, "dY");                      // L d
    terms_.l2(stage, kRead, terms_.x_bytes, "dY for the weights");        // L d
    terms_.both(stage, kRead, 3 * weights, "gate, up and down weights");  // 3 h d
    terms_.l2(stage, kRead, 2 * weights, "gate and up weights for dX");   // 2 h d
    terms_.l2(stage, kWrite, 3 * hidden, "gate, up and dhidden");         // 3 L h
    terms_.l2(stage, kRead, 3 * hidden, "gate, up and dhidden");          // 3 L h
    terms_.l2(stage, kWrite, 3 * hidden, "hidden, dgate and dup");        // 3 L h
    terms_.l2(stage, kRead, 5 * hidden, "hidden, dgate and dup");         // L h, and 2 L h of either gradient
    const auto gradients = checked_product({3, shape_.shared_size, gradient_row_});
    terms_.both(stage, kWrite, gradients, "gradients of gate, up and down");  // 3 h d
    terms_.both(stage, kWrite, sums_bytes_, "sums of dX");                    // L d fp32
    // Needed: dhidden, and two products for each of three matrices less X's own: 6 of 2 L d h. Gate and up
    // are computed again: 2 more.
    const auto product = checked_product({2, shape_.num_tokens, shape_.hidden_size, shape_.shared_size});
    terms_.flop(stage, 6 * product, 8 * product);
  }

  /// Rows of W or V, compulsory: the active ones, then what the schedule loads beside them.
  void weight_hbm(Stage stage, std::string_view active, std::string_view inactive) {
    const auto needed = checked_product({sums_.active_experts, terms_.row_bytes});
    const auto all = checked_product({sums_.loaded_experts, terms_.row_bytes});
    terms_.hbm(stage, kRead, needed, active);                            // E d
    if (all > needed) terms_.hbm(stage, kRead, all - needed, inactive);  // (loaded - E) d
  }

  /// Rows that items request: of every pair, of every item, or all of them.
  std::int64_t requested_weights() const {
    return checked_product({gathers() ? pairs_ : sums_.expert_rows, terms_.row_bytes});
  }
  std::int64_t requested_tokens() const {
    return checked_product({dense() ? shape_.num_tokens : sums_.token_rows, terms_.row_bytes});
  }

  void lists(Stage stage) {
    terms_.both(stage, kRead, terms_.ids_bytes, "expert_ids");  // M
    if (gathers() || dense()) {
      terms_.both(stage, kRead, terms_.offsets_bytes, "token_offsets");  // L + 1
    } else {
      terms_.both(stage, kRead, schedule_.bytes(), "schedule arrays");  // Schedule::bytes()
    }
  }

  void dgrad() {
    const Stage stage = Stage::kExpertsDgrad;
    weight_hbm(stage, "W rows of active experts", "W rows of inactive experts");
    weight_hbm(stage, "V rows of active experts", "V rows of inactive experts");
    terms_.l2(stage, kRead, requested_weights(), "V rows");  // M d, or R d: u
    terms_.l2(stage, kRead, requested_weights(), "W rows");  // M d, or R d: dX
    terms_.hbm(stage, kRead, terms_.x_bytes, "dY");          // L d
    terms_.l2(stage, kRead, requested_tokens(), "dY rows");  // T d
    if (saved()) {
      terms_.both(stage, kRead, pair_bytes(), "z");  // M, or P
    } else {
      terms_.hbm(stage, kRead, terms_.x_bytes, "X");          // L d
      terms_.l2(stage, kRead, requested_tokens(), "X rows");  // T d
      if (!gathers()) {  // a gathered row serves z and dX; a tile's is loaded again
        terms_.l2(stage, kRead, requested_weights(), "W rows for z");  // R d
      }
    }
    terms_.both(stage, kRead, terms_.gates_bytes, "gates");  // M fp32
    lists(stage);
    if (dense()) {
      const auto scores = checked_product({saved() ? 1 : 2, pair_elements(), kFp32Bytes});
      const auto of_pairs = checked_product({saved() ? 1 : 2, pairs_, kFp32Bytes});
      terms_.both(stage, kWrite, scores, "U and S");            // L N fp32 each
      terms_.both(stage, kRead, of_pairs, "U and S of pairs");  // M fp32 each
      terms_.both(stage, kRead, pair_bytes(), "Q for dX");      // L N
    }
    terms_.both(stage, kWrite, 2 * pair_bytes(), "p and q");                // 2 M, or 2 P
    terms_.both(stage, kWrite, gate_gradient_bytes(), "gates' gradients");  // M fp32, or h: P
    dx_sums(stage);
    // u and dX: 2 d each per pair; z again where it was not saved.
    const auto d = shape_.hidden_size;
    terms_.flop(stage, checked_product({4, d, pairs_}),
                checked_product({saved() ? 4 : 6, d, sums_.products}));
  }

  /// What the experts add to dX, and its end where no router follows.
  void dx_sums(Stage stage) {
    const bool added_to = shape_.shared_size > 0;
    if (added_to) {
      terms_.both(stage, kRead, sums_bytes_, "sums of dX");  // L d fp32
    }
    if (!gathers() && !dense()) {
      const auto rows = checked_product({sums_.token_rows, shape_.hidden_size, kFp32Bytes});
      terms_.l2(stage, kWrite, rows, "dX rows added to");  // T d fp32
      terms_.l2(stage, kRead, rows, "dX rows added to");   // T d fp32
    }
    if (fixed_) {
      terms_.both(stage, kWrite, terms_.x_bytes, "dX");  // L d
    } else {
      terms_.both(stage, kWrite, sums_bytes_, "sums of dX");  // L d fp32
    }
  }

  void wgrad() {
    const Stage stage = Stage::kExpertsWgrad;
    const auto d = shape_.hidden_size;
    const auto active = checked_product({2, sums_.active_experts, gradient_row_});
    const auto others = checked_product({2, shape_.num_experts() - sums_.active_experts, gradient_row_});
    const auto rows = gathers() ? checked_product({pairs_, terms_.row_bytes}) : requested_tokens();
    terms_.both(stage, kRead, 2 * pair_bytes(), "p and q");    // 2 M, or 2 P
    terms_.hbm(stage, kRead, 2 * terms_.x_bytes, "X and dY");  // 2 L d
    terms_.l2(stage, kRead, 2 * rows, "X and dY rows");        // 2 M d, or 2 T d
    lists(stage);
    gradient_rows(stage, active, others);
    // dW and dV: 2 d each per pair.
    terms_.flop(stage, checked_product({4, d, pairs_}), checked_product({4, d, sums_.products}));
  }

  /// Rows of dW and dV, by GradientForm. Strips and products write whole tiles: of what is touched alone they
  /// leave nothing out.
  void gradient_rows(Stage stage, std::int64_t active, std::int64_t others) {
    const bool adds = training_.form == GradientForm::kAdded;
    const bool whole = dense() || (strips() && !adds);
    const bool zeros = training_.form == GradientForm::kStored || whole;
    if (adds) {
      terms_.hbm(stage, kRead, active, "dW and dV that are added to");  // 2 E d
      if (dense()) terms_.hbm(stage, kRead, others, "dW and dV of other experts");
    }
    terms_.hbm(stage, kWrite, active, "dW and dV of active experts");             // 2 E d
    if (zeros) terms_.hbm(stage, kWrite, others, "zeros of other experts");       // 2 (N - E) d
    if (strips()) {
      // Row strips store, or read and add; column strips read what is there and store the sum.
      terms_.l2(stage, kWrite, checked_product({2, sums_.expert_rows, gradient_row_}),
                "dW and dV of every item");  // 2 R d
      terms_.l2(stage, kRead,
                checked_product({2, adds ? sums_.expert_rows : sums_.col_expert_rows, gradient_row_}),
                adds ? "dW and dV of every item" : "dW and dV that columns add to");  // 2 R of columns, d
      const auto left = shape_.num_experts() - sums_.loaded_experts;
      if (zeros) {
        terms_.l2(stage, kWrite, checked_product({2, left, gradient_row_}), "zeros of other experts");
      }
      return;
    }
    if (adds) {
      terms_.l2(stage, kRead, active, "dW and dV that are added to");  // 2 E d
      if (dense()) terms_.l2(stage, kRead, others, "dW and dV of other experts");
    }
    terms_.l2(stage, kWrite, active, "dW and dV of active experts");        // 2 E d
    if (zeros) terms_.l2(stage, kWrite, others, "zeros of other experts");  // 2 (N - E) d
  }

  void select() {
    const Stage stage = Stage::kRouterSelectBackward;
    terms_.both(stage, kRead, gate_gradient_bytes(), "gates' gradients");  // M fp32, or h: P
    terms_.both(stage, kRead, terms_.gates_bytes, "gates");                // M fp32
    terms_.both(stage, kRead, terms_.ids_bytes, "expert_ids");             // M
    terms_.both(stage, kRead, terms_.offsets_bytes, "token_offsets");      // L + 1
    if (shape_.gate_mode != GateMode::kSoftmax || training_.losses.any()) {
      terms_.both(stage, kRead, logits_bytes_, "log-probabilities");  // L (Nr + Nc) fp32
    }
    terms_.both(stage, kWrite, logits_bytes_, "logits' gradients");  // L (Nr + Nc) fp32
    if (training_.losses.z > 0) {
      terms_.both(stage, kRead, checked_product({2, shape_.num_tokens, kFp32Bytes}), "log-sum-exps");  // 2 L
    }
    if (training_.losses.balance > 0) {
      const auto fractions = checked_product({shape_.num_experts(), kFp32Bytes});
      terms_.l2(stage, kWrite, fractions, "pair fractions F");     // N fp32
      terms_.l2(stage, kRead, 2 * fractions, "pair fractions F");  // N fp32, by rows and by columns
      terms_.l2(stage, kWrite, logits_bytes_, "F c and F^T r");    // L (Nr + Nc) fp32
      terms_.l2(stage, kRead, logits_bytes_, "F c and F^T r");     // L (Nr + Nc) fp32
      // Two products of [L, Nc] x [Nc, Nr]: 2 L N each.
      const auto products = checked_product({4, shape_.num_tokens, shape_.num_experts()});
      terms_.flop(stage, products, products);
    }
  }

  void project() {
    const Stage stage = Stage::kRouterProjectBackward;
    const auto operands = checked_product({shape_.num_tokens, sides_, element_});
    const auto weights = checked_product({sides_, terms_.row_bytes});
    terms_.both(stage, kRead, logits_bytes_, "logits' gradients");  // L (Nr + Nc) fp32
    if (training_.batch_norm) {
      terms_.both(stage, kRead, logits_bytes_, "normalised logits");             // L (Nr + Nc) fp32
      terms_.l2(stage, kRead, 2 * logits_bytes_, "both, for the column means");  // 2 L (Nr + Nc) fp32
    }
    terms_.l2(stage, kWrite, operands, "logits' gradients as operands");     // L (Nr + Nc)
    terms_.l2(stage, kRead, 2 * operands, "logits' gradients as operands");  // for dX and for the weights
    terms_.both(stage, kRead, terms_.x_bytes, "X");                          // L d
    terms_.both(stage, kRead, weights, "Wr and Wc");                         // (Nr + Nc) d
    terms_.both(stage, kRead, sums_bytes_, "sums of dX");                    // L d fp32
    terms_.both(stage, kWrite, terms_.x_bytes, "dX");                        // L d
    terms_.both(stage, kWrite, checked_product({sides_, gradient_row_}), "dWr and dWc");  // (Nr + Nc) d
    // dX += da W and dW = da^T X: 2 L d (Nr + Nc) each.
    const auto products = checked_product({4, shape_.num_tokens, shape_.hidden_size, sides_});
    terms_.flop(stage, products, products);
  }

  TermWriter terms_;
  const LayerShape& shape_;
  const Schedule& schedule_;
  bool fixed_;
  const TrainingOptions& training_;
  ItemSums sums_;
  std::int64_t pairs_;
  std::int64_t sides_;         ///< Nr + Nc
  std::int64_t element_;       ///< bytes in storage dtype
  std::int64_t gradient_row_;  ///< a row of dW or dV
  std::int64_t sums_bytes_;    ///< dX in fp32
  std::int64_t logits_bytes_;  ///< L (Nr + Nc) fp32
};

}  // namespace

AnalyticCost backward_cost(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           bool fixed_routing, const TrainingOptions& training) {
  require_fit(shape, routing);
  if (schedule.kind == ScheduleKind::kAuto) {
    throw InternalError("backward_cost was given a schedule of kind 'auto'");
  }
  return BackwardTerms(shape, routing, schedule, fixed_routing, training).make();
}

}  // namespace moescope
