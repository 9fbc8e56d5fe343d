#include "core/cost/memory_plan.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "core/cost/traffic_terms.hpp"

namespace moescope {
namespace {

constexpr std::int64_t kDoubleBytes = 8;

class Planner {
 public:
  Planner(const LayerShape& shape, const Routing& routing, const Schedule& schedule, bool fixed_routing,
          bool has_bias, const TrainingOptions& training, const TrainingLayout& layout)
      : shape_(shape),
        schedule_(schedule),
        fixed_(fixed_routing),
        has_bias_(has_bias && !fixed_routing),
        training_(training),
        layout_(layout),
        pairs_(routing.num_pairs()),
        touched_(count_active_experts(routing)),
        sides_(shape.grid_rows + shape.grid_cols),
        element_(dtype_bytes(shape.dtype)),
        operand_(dtype_bytes(layout.operands)),
        gradient_(dtype_bytes(training.gradient_dtype(shape.dtype))) {
    for (const WorkItem& item : schedule.items) {
      const auto tokens = item.token_end - item.token_begin;
      tile_elements_ += checked_product({tokens, experts_of(item)});
    }
    plan_.stages = backward_stages(shape, fixed_routing, training.save, training.optimizer);
  }

  MemoryPlan make() {
    add_inputs();
    add_saved();
    add_gradients();
    add_working();
    return std::move(plan_);
  }

 private:
  std::int64_t experts_of(const WorkItem& item) const {
    switch (item.kind) {
      case WorkItemKind::kRowStrip:
        return shape_.grid_cols;
      case WorkItemKind::kColStrip:
        return shape_.grid_rows;
      case WorkItemKind::kGroup:
        return item.expert_end - item.expert_begin;
      case WorkItemKind::kAllExperts:
        return shape_.num_experts();
      case WorkItemKind::kToken:
        break;
    }
    return schedule_.pair_offsets[static_cast<std::size_t>(item.token_end)] -
           schedule_.pair_offsets[static_cast<std::size_t>(item.token_begin)];
  }

  void add(MemoryPart part, std::string_view what, std::initializer_list<std::int64_t> factors) {
    plan_.terms.push_back({part, what, checked_product(factors)});
  }
  void add_working(Stage first, Stage last, std::string_view what,
                   std::initializer_list<std::int64_t> factors) {
    plan_.terms.push_back({MemoryPart::kWorking, what, checked_product(factors), first, last});
  }

  std::int64_t routing_bytes() const {
    // expert_ids and gates [M], token_offsets [L+1]
    return pairs_ * (kIdBytes + kFp32Bytes) + (shape_.num_tokens + 1) * kOffsetBytes;
  }

  void add_inputs() {
    const auto part = MemoryPart::kInput;
    add(part, "X", {shape_.num_tokens, shape_.hidden_size, element_});              // L d
    add(part, "dY", {shape_.num_tokens, shape_.hidden_size, element_});             // L d
    add(part, "W and V", {2, shape_.num_experts(), shape_.hidden_size, element_});  // 2 N d
    if (fixed_) {
      add(part, "routing", {routing_bytes()});  // 8 M + 8 (L + 1)
    } else {
      add(part, "Wr and Wc", {sides_, shape_.hidden_size, element_});  // (Nr + Nc) d
    }
    if (has_bias_) {
      add(part, "router's biases", {sides_, kFp32Bytes});  // Nr + Nc fp32
    }
    if (shape_.shared_size > 0) {
      add(part, "shared MLP", {3, shape_.shared_size, shape_.hidden_size, element_});  // 3 h d
    }
    if (training_.optimizer != OptimizerForm::kNone) {
      add(part, "optimizer's state", {optimizer_state_bytes(shape_)});  // 6 N d fp32, 2 N
    }
  }

  void add_saved() {
    const auto part = MemoryPart::kSaved;
    const bool again = training_.save == SaveMode::kMinimal && !fixed_;
    if (!fixed_ && layout_.strips) {
      add(part, "threshold, tie limit and gates' shift", {3, shape_.num_tokens, kFp32Bytes});  // 3 L fp32
    }
    if (!fixed_ && !again) {
      add(part, "log-probabilities", {shape_.num_tokens, sides_, kFp32Bytes});  // L (Nr + Nc) fp32
      if (!layout_.strips) {
        add(part, "routing", {routing_bytes()});  // 8 M + 8 (L + 1)
      }
      if (training_.batch_norm || training_.losses.z > 0) {
        add(part, "log-sum-exps", {2, shape_.num_tokens, kFp32Bytes});  // 2 L fp32
      }
      if (training_.batch_norm) {
        add(part, "batch statistics", {2, sides_, kDoubleBytes});  // mean and variance, fp64
      }
    }
    if (!again) {
      add(part, "schedule", {schedule_bytes()});
    }
    if (training_.save == SaveMode::kScores) {
      add(part, "z", {pair_elements(), operand_});  // M, or tokens x experts of every strip
    }
  }

  /// What an array over pairs has: an element per pair, or whole tiles.
  std::int64_t pair_elements() const { return layout_.strips ? tile_elements_ : pairs_; }

  std::int64_t schedule_bytes() const {
    if (!layout_.strips) {
      return schedule_.bytes();
    }
    // A token per entry, an offset per strip.
    return std::ssize(schedule_.tokens) * kIdBytes + (std::ssize(schedule_.items) + 1) * kOffsetBytes;
  }

  void add_gradients() {
    const auto part = MemoryPart::kGradient;
    const auto d = shape_.hidden_size;
    add(part, "dX", {shape_.num_tokens, d, element_});                // L d
    add(part, "dW and dV", {2, shape_.num_experts(), d, gradient_});  // 2 N d
    add(part, "touched experts", {touched_, kIdBytes});               // at most N
    if (fixed_) {
      add(part, "gates' gradients", {pairs_, kFp32Bytes});  // M fp32
    } else {
      add(part, "dWr and dWc", {sides_, d, gradient_});  // (Nr + Nc) d
    }
    if (has_bias_) {
      add(part, "biases' gradients", {sides_, kFp32Bytes});  // Nr + Nc fp32
    }
    if (shape_.shared_size > 0) {
      add(part, "shared MLP's gradients", {3, shape_.shared_size, d, gradient_});  // 3 h d
    }
    if (training_.optimizer != OptimizerForm::kNone) {
      add(part, "W and V after the step", {2, shape_.num_experts(), d, element_});  // 2 N d
    }
  }

  void add_working() {
    const auto L = shape_.num_tokens;
    const auto d = shape_.hidden_size;
    const Stage begin = plan_.stages.front();
    const Stage end = plan_.stages.back();
    add_working(begin, end, "sums of dX", {L, d, kFp32Bytes});  // L d fp32
    if (shape_.shared_size > 0) {
      // gate, up and hidden in fp32, and one of them rounded
      add_working(Stage::kSharedMlpBackward, Stage::kSharedMlpBackward, "activations of the shared MLP",
                  {L, shape_.shared_size, 3 * kFp32Bytes + element_});
    }
    if (!fixed_ && training_.save == SaveMode::kMinimal) {
      add_recomputed();
    }
    add_working(Stage::kExpertsDgrad, Stage::kExpertsWgrad, "p and q", {2, pair_elements(), operand_});
    if (!fixed_) {
      // h or the gates' gradients, until they are summed by row and column
      add_working(Stage::kExpertsDgrad, Stage::kRouterSelectBackward, "gates' gradients",
                  {pair_elements(), layout_.strips ? operand_ : kFp32Bytes});
      // of the softmax's inputs; before the batch norm; and rounded
      add_working(Stage::kRouterSelectBackward, Stage::kRouterProjectBackward, "logits' gradients",
                  {L, sides_, kFp32Bytes});
      add_working(Stage::kRouterProjectBackward, Stage::kRouterProjectBackward,
                  "logits' gradients as operands", {L, sides_, kFp32Bytes + element_});
    }
    if (!layout_.strips && schedule_.kind != ScheduleKind::kDenseMasked) {
      // offsets and cursors of N experts; pair and token of M pairs
      add_working(Stage::kExpertsWgrad, Stage::kExpertsWgrad, "pairs by expert",
                  {(2 * shape_.num_experts() + 1) * kOffsetBytes + pairs_ * (kOffsetBytes + kIdBytes)});
    }
    if (!layout_.strips && gradient_ < kFp32Bytes) {
      add_working(Stage::kExpertsWgrad, Stage::kExpertsWgrad, "sums of dW and dV",
                  {2, shape_.num_experts(), d, kFp32Bytes});  // 2 N d fp32, before they are rounded
    }
  }

  /// Of SaveMode::kMinimal: what the forward's stages leave a second time.
  void add_recomputed() {
    add_working(Stage::kRouterProject, Stage::kRouterProjectBackward, "log-probabilities again",
                {shape_.num_tokens, sides_, kFp32Bytes});
    if (training_.batch_norm || training_.losses.z > 0) {
      add_working(Stage::kRouterSelect, Stage::kRouterProjectBackward, "log-sum-exps again",
                  {2, shape_.num_tokens, kFp32Bytes});
    }
    if (training_.batch_norm) {
      add_working(Stage::kRouterProject, Stage::kRouterProjectBackward, "batch statistics again",
                  {2, sides_, kDoubleBytes});
    }
    if (!layout_.strips) {
      add_working(Stage::kRouterSelect, Stage::kRouterSelectBackward, "routing again", {routing_bytes()});
    }
    add_working(Stage::kSchedule, Stage::kRouterProjectBackward, "schedule again", {schedule_bytes()});
  }

  const LayerShape& shape_;
  const Schedule& schedule_;
  bool fixed_;
  bool has_bias_;
  const TrainingOptions& training_;
  const TrainingLayout& layout_;
  std::int64_t pairs_;
  std::int64_t touched_;
  std::int64_t sides_;
  std::int64_t element_;
  std::int64_t operand_;
  std::int64_t gradient_;
  std::int64_t tile_elements_ = 0;
  MemoryPlan plan_;
};

}  // namespace

std::string_view to_string(MemoryPart part) {
  switch (part) {
    case MemoryPart::kInput:
      return "input";
    case MemoryPart::kSaved:
      return "saved";
    case MemoryPart::kWorking:
      return "working";
    case MemoryPart::kGradient:
      return "gradient";
  }
  return "?";
}

std::int64_t MemoryPlan::bytes(MemoryPart part) const {
  std::int64_t sum = 0;
  for (const MemoryTerm& term : terms) {
    sum += term.part == part ? term.bytes : 0;
  }
  return sum;
}

std::int64_t MemoryPlan::working_bytes(Stage stage) const {
  const auto place = [&](Stage of) { return std::ranges::find(stages, of) - stages.begin(); };
  std::int64_t sum = 0;
  for (const MemoryTerm& term : terms) {
    if (term.part == MemoryPart::kWorking && place(term.first) <= place(stage) &&
        place(stage) <= place(term.last)) {
      sum += term.bytes;
    }
  }
  return sum;
}

std::int64_t MemoryPlan::peak_bytes() const {
  std::int64_t most = 0;
  for (const Stage stage : stages) {
    most = std::max(most, working_bytes(stage));
  }
  return bytes(MemoryPart::kSaved) + most;
}

std::int64_t optimizer_state_bytes(const LayerShape& shape) {
  const std::int64_t elements = checked_product({3, shape.num_experts(), shape.hidden_size, kFp32Bytes});
  return checked_product({2, elements}) + checked_product({2, shape.num_experts(), kIdBytes});
}

std::vector<Stage> backward_stages(const LayerShape& shape, bool fixed_routing, SaveMode save,
                                   OptimizerForm optimizer) {
  std::vector<Stage> stages;
  const auto add = [&](bool runs, std::initializer_list<Stage> some) {
    for (const Stage stage : some) {
      if (runs) {
        stages.push_back(stage);
      }
    }
  };
  add(shape.shared_size > 0, {Stage::kSharedMlpBackward});
  add(!fixed_routing && save == SaveMode::kMinimal,
      {Stage::kRouterProject, Stage::kRouterSelect, Stage::kSchedule});
  add(true, {Stage::kExpertsDgrad, Stage::kExpertsWgrad});
  add(!fixed_routing, {Stage::kRouterSelectBackward, Stage::kRouterProjectBackward});
  add(optimizer != OptimizerForm::kNone, {Stage::kExpertsOptimizer});
  return stages;
}

MemoryPlan training_memory_plan(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                                bool fixed_routing, bool has_bias, const TrainingOptions& training,
                                const TrainingLayout& layout) {
  require_fit(shape, routing);
  return Planner(shape, routing, schedule, fixed_routing, has_bias, training, layout).make();
}

}  // namespace moescope
