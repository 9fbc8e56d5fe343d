// Top-K FFN experts: tokens permuted by expert, a grouped GEMM, and back.
#include "reference/systems/ffn_experts.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "core/base/error.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/matrix.hpp"
#include "reference/stages/router_select.hpp"

namespace moescope::reference {
namespace {

/// Consecutive tasks of one expert: rows [begin, end) of the permuted batch, and how many rows are
/// multiplied.
struct Block {
  std::int32_t expert = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t rows = 0;
};

/// `capacity`: rows of every expert, whether it has as many tasks or none; 0: as many as it has.
std::vector<Block> blocks_of(const Schedule& schedule, std::int64_t num_experts, std::int64_t capacity) {
  std::vector<Block> blocks;
  auto item = schedule.items.begin();
  for (std::int32_t expert = 0; expert < num_experts; ++expert) {
    std::int64_t begin = 0;
    std::int64_t end = 0;
    if (item != schedule.items.end() &&
        schedule.experts[static_cast<std::size_t>(item->expert_begin)] == expert) {
      begin = item->token_begin;
      end = item->token_end;
      ++item;
    }
    for (std::int64_t rows = capacity > 0 ? capacity : end - begin; rows > 0; rows -= kFfnBlockTokens) {
      const std::int64_t last = std::min(begin + kFfnBlockTokens, end);
      blocks.push_back({expert, begin, last, std::min(rows, kFfnBlockTokens)});
      begin = last;
    }
  }
  return blocks;
}

/// One thread's operands in fp32.
struct ExpertScratch {
  MatrixF32 x;        ///< [block, d]
  MatrixF32 gate_up;  ///< [2 f, d]
  MatrixF32 hidden;   ///< [block, 2 f]: gate and up; the first f columns become their product
  MatrixF32 down;     ///< [d, f]
  MatrixF32 out;      ///< [block, d]
};

/// scratch.out = FFN of the expert for these tokens, and for zeros in the rows behind them.
void run_block(const SystemInputs& inputs, std::int32_t expert, std::span<const std::int32_t> tokens,
               std::int64_t rows, ExpertScratch& scratch) {
  const auto& shape = inputs.shape;
  const auto& experts = *inputs.weights->experts;
  const auto f = shape.expert_size;
  scratch.x.resize(rows, shape.hidden_size);
  scratch.gate_up.resize(2 * f, shape.hidden_size);
  scratch.down.resize(shape.hidden_size, f);
  for (std::int64_t r = 0; r < std::ssize(tokens); ++r) {
    load_rows(inputs.hidden_states, tokens[static_cast<std::size_t>(r)], scratch.x.middleRows(r, 1));
  }
  scratch.x.bottomRows(rows - std::ssize(tokens)).setZero();
  load_rows(experts.gate_up, expert * 2 * f, scratch.gate_up);
  load_rows(experts.down, expert * shape.hidden_size, scratch.down);
  scratch.hidden.noalias() = scratch.x * scratch.gate_up.transpose();
  for (std::int64_t r = 0; r < rows; ++r) {
    float* hidden = scratch.hidden.row(r).data();
    for (std::int64_t j = 0; j < f; ++j) {
      hidden[j] = activate(shape.activation, hidden[j]) * hidden[f + j];
    }
    round_span({hidden, static_cast<std::size_t>(f)}, shape.dtype);
  }
  scratch.out.noalias() = scratch.hidden.leftCols(f) * scratch.down.transpose();
}

/// The columns of a grid with one row, whose logit is 0: OmniMoE's selection serves.
RouterLogits one_row_logits(const SystemInputs& inputs) {
  return {HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, 1),
          scores_nt(inputs.hidden_states, inputs.weights->router)};
}

HostTensor grouped_ffn(const SystemInputs& inputs, const Routing& routing, const Schedule& schedule,
                       std::int64_t capacity) {
  const auto d = inputs.shape.hidden_size;
  HostTensor results(Dtype::kF32, routing.num_pairs(), d);  // in CSR order
  const auto result = results.f32();
  const auto blocks = blocks_of(schedule, inputs.shape.num_experts, capacity);
  const int threads = omp_get_max_threads();
  std::vector<ExpertScratch> scratch(static_cast<std::size_t>(threads));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
    const auto tokens = std::span(schedule.tokens)
                            .subspan(static_cast<std::size_t>(blocks[b].begin),
                                     static_cast<std::size_t>(blocks[b].end - blocks[b].begin));
    run_block(inputs, blocks[b].expert, tokens, blocks[b].rows, mine);
    for (std::int64_t r = 0; r < std::ssize(tokens); ++r) {
      // With groups of one expert a task is one pair.
      const auto pair = schedule.sorted_pair_ids[static_cast<std::size_t>(blocks[b].begin + r)];
      std::copy_n(mine.out.row(r).data(), d, result.row(pair));
    }
  }
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, d);
  const auto y = out.f32();
#pragma omp parallel for
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const auto first = routing.token_offsets[static_cast<std::size_t>(token)];
    add_weighted_rows<float>(
        routing.gates_of(token),
        [&](std::size_t q) -> const float* { return result.row(first + static_cast<std::int64_t>(q)); }, d,
        y.row(token));
  }
  return out;
}

void add_row(const MatrixF32& out, std::int64_t row, float gate, float* y) {
  const float* result = out.row(row).data();
  for (std::int64_t j = 0; j < out.cols(); ++j) {
    y[j] += gate * result[j];
  }
}

/// Each token by itself, its experts in the order of their ids; every pair reads its expert's weights.
HostTensor ffn_of_tokens(const SystemInputs& inputs, const Routing& routing, const Schedule& schedule) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  const auto y = out.f32();
  const int threads = omp_get_max_threads();
  std::vector<ExpertScratch> scratch(static_cast<std::size_t>(threads));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::size_t t = 0; t < schedule.tokens.size(); ++t) {
    auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
    const std::int32_t token = schedule.tokens[t];
    for (std::int64_t p = schedule.pair_offsets[t]; p < schedule.pair_offsets[t + 1]; ++p) {
      const auto pair = static_cast<std::size_t>(schedule.sorted_pair_ids[static_cast<std::size_t>(p)]);
      run_block(inputs, routing.expert_ids[pair], {&token, 1}, 1, mine);
      add_row(mine.out, 0, routing.gates[pair], y.row(token));
    }
  }
  return out;
}

/// All experts for blocks of tokens; what a token did not select is thrown away.
HostTensor ffn_of_all(const SystemInputs& inputs, const Routing& routing, const Schedule& schedule) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  const auto y = out.f32();
  const int threads = omp_get_max_threads();
  std::vector<ExpertScratch> scratch(static_cast<std::size_t>(threads));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (std::int64_t first = 0; first < inputs.shape.num_tokens; first += kFfnBlockTokens) {
    auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
    const auto count = std::min(kFfnBlockTokens, inputs.shape.num_tokens - first);
    const auto tokens =
        std::span(schedule.tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    for (std::int32_t expert = 0; expert < inputs.shape.num_experts; ++expert) {
      run_block(inputs, expert, tokens, count, mine);
      for (std::int64_t r = 0; r < count; ++r) {
        const std::int32_t token = tokens[static_cast<std::size_t>(r)];
        const auto ids = routing.ids_of(token);
        const auto found = std::ranges::lower_bound(ids, expert);
        if (found != ids.end() && *found == expert) {
          add_row(mine.out, r, routing.gates_of(token)[static_cast<std::size_t>(found - ids.begin())],
                  y.row(token));
        }
      }
    }
  }
  return out;
}

HostTensor run_ffn(const SystemInputs& inputs, const Routing& routing, const Schedule& schedule,
                   std::int64_t capacity) {
  switch (schedule.kind) {
    case ScheduleKind::kTokenCentric:
      return ffn_of_tokens(inputs, routing, schedule);
    case ScheduleKind::kDenseMasked:
      return ffn_of_all(inputs, routing, schedule);
    default:
      return grouped_ffn(inputs, routing, schedule, capacity);
  }
}

/// Softmax of the logits over all experts, [L,N].
HostTensor probabilities_of(const RouterLogits& logits) {
  HostTensor all(Dtype::kF32, logits.col.rows(), logits.col.cols());
  const auto in = logits.col.f32();
  const auto out = all.f32();
#pragma omp parallel for
  for (std::int64_t token = 0; token < in.rows; ++token) {
    log_softmax(in.row_span(token), out.row_span(token));
    for (float& value : out.row_span(token)) {
      value = std::exp(value);
    }
  }
  return all;
}

}  // namespace

ScheduleOptions FfnExecution::schedule_options() const { return inputs_.schedule_options(); }

void FfnExecution::schedule_pairs() {
  if (inputs_.tokens.every()) {
    schedule_ = build_schedule(routing_, schedule_options());
    return;
  }
  const bool from_logits = needs_probabilities(inputs_.tokens) && !inputs_.fixed_routing;
  const HostTensor probabilities = from_logits ? probabilities_of(logits_) : HostTensor();
  assignment_ = assign_tokens(routing_, inputs_.tokens, from_logits ? &probabilities : nullptr);
  schedule_ = build_schedule(ran(), schedule_options());
}

std::vector<StageMemory> FfnExecution::memory() const {
  const auto f32 = dtype_bytes(Dtype::kF32);
  const auto d = shape().hidden_size;
  const auto f = shape().expert_size;
  const auto pairs = std::max(shape().num_tokens * shape().top_k, ran().num_pairs());
  const auto logits = shape().num_tokens * (1 + shape().num_experts) * f32;
  const auto selectors = omp_get_max_threads() * (1 + shape().num_experts) * 5 * f32;
  const auto scores = needs_probabilities(inputs_.tokens) ? 2 * logits : 0;
  // Before the first run: sorted_pair_ids, and one (token, offset) per pair.
  const auto permutation = schedule_.items.empty() ? pairs * (8 + 8 + 4) : schedule_.bytes();
  const auto block = kFfnBlockTokens * 2 * (d + f) + 3 * f * d;
  const bool grouped = schedule_options().kind == ScheduleKind::kExpertCentric;
  const auto results = ((grouped ? pairs : 0) + shape().num_tokens) * d * f32;
  return that_run({{Stage::kRouterProject, logits},
                   {Stage::kRouterSelect, logits + selectors},
                   {Stage::kSchedule, permutation + scores},
                   {Stage::kExperts, permutation + results + omp_get_max_threads() * block * f32}});
}

void FfnExecution::compute(Stage stage) {
  switch (stage) {
    case Stage::kRouterProject:
      logits_ = one_row_logits(inputs_);
      break;
    case Stage::kRouterSelect:
      routing_ = select_rows(logits_, shape().top_k, shape().gate_mode, Marginals::kLogSoftmax);
      if (!needs_probabilities(inputs_.tokens)) {
        logits_ = {};
      }
      break;
    case Stage::kSchedule:
      schedule_pairs();
      break;
    case Stage::kExperts:
      y_ = run_ffn(inputs_, ran(), schedule_, assignment_ ? assignment_->capacity : 0);
      break;
    default:
      throw InternalError(fmt::format("{} has no stage {}", to_string(shape().system), to_string(stage)));
  }
}

}  // namespace moescope::reference
