#include "reference/ranks/ranks_execution.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <thread>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/base/index.hpp"
#include "core/ranks/placement_use.hpp"
#include "reference/stages/matmul.hpp"
#include "reference/stages/stages.hpp"
#include "reference/systems/host_needs.hpp"

namespace moescope::reference {
namespace {

/// Rows of a tensor, copied.
HostTensor take_rows(const HostTensor& tensor, std::span<const std::int32_t> rows) {
  HostTensor taken(tensor.dtype(), std::ssize(rows), tensor.cols());
  const std::size_t size = at(tensor.cols() * dtype_bytes(tensor.dtype()));
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(taken.data() + i * size, tensor.data() + at(rows[i]) * size, size);
  }
  return taken;
}

/// Adds rows of `sums` from `first` on to rows `tokens` of y.
void add_rows(const HostTensor& sums, std::int64_t first, std::span<const std::int32_t> tokens,
              HostTensor& y) {
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const float* const from = sums.f32().row(first + static_cast<std::int64_t>(i));
    float* const to = y.f32().row(tokens[i]);
    for (std::int64_t c = 0; c < y.cols(); ++c) {
      to[c] += from[c];
    }
  }
}

/// What every rank may get at once, beside what one device needs.
void require_memory(const LayerInputs& inputs, const ScheduleOptions& options) {
  const HostNeeds needs = cpu_execution_needs(inputs.shape, inputs.fixed_routing.has_value(), options);
  const LayerShape& shape = inputs.shape;
  // A token's row on every rank, as message, in storage and as fp32 sum; each pair in a message and a
  // routing.
  const auto rows = static_cast<double>(shape.num_tokens * shape.hidden_size) *
                    static_cast<double>(2 * dtype_bytes(shape.dtype) + dtype_bytes(Dtype::kF32));
  const auto copies = static_cast<double>(std::min(options.ranks.group.ranks, shape.top_k));
  const double all =
      options.ranks.exchange == Exchange::kGather ? static_cast<double>(options.ranks.group.ranks) : copies;
  require_host_memory("the layer on several ranks", needs.kept + needs.passing + rows * all +
                                                        24.0 * static_cast<double>(shape.num_pairs()));
}

}  // namespace

bool RanksExecution::supports(ScheduleKind kind, std::string& why) {
  if (kind == ScheduleKind::kDenseMasked) {
    why = "computes all experts for every token; a rank has only its own";
    return false;
  }
  return supports_schedule(kind, why);
}

RanksExecution::RanksExecution(const LayerInputs& inputs, const ScheduleOptions& options,
                               const MachineRates& rates, const Routing* known,
                               std::unique_ptr<RankTransport> transport)
    : CpuExecution(inputs.shape.dtype), inputs_(inputs), options_(options), transport_(std::move(transport)) {
  inputs.validate();
  const RankGroup& group = options.ranks.group;
  group.validate();
  if (std::string why; !supports(options.kind, why)) {
    throw InvalidArgument("schedule", to_string(options.kind), why);
  }
  require_memory(inputs, options);
  if (transport_ == nullptr) {
    transport_ = make_loopback_transport(group.ranks);
  }
  const bool needs_routing = options.kind == ScheduleKind::kAuto || options.ranks.placement.by_counts();
  if (!inputs.fixed_routing && needs_routing) {
    if (known != nullptr) {
      routing_ = *known;
    } else {
      routing_ = router_select(inputs.shape, reference::router_project(inputs));
    }
  }
  if (options.kind == ScheduleKind::kAuto) {
    const ScheduleChoice choice = choose_schedule(inputs.shape, current_routing(), options, rates);
    options_ = choice.schedule;
    options_.ranks = options.ranks;
    explanation_ = choice.explanation();
    if (std::string why; !supports(options_.kind, why)) {
      explanation_ += fmt::format("\n{} {}: token_centric in its place", to_string(options_.kind), why);
      options_.kind = ScheduleKind::kTokenCentric;
    }
  }
  placement_ = make_placement(options.ranks.placement, group, inputs.shape.grid_rows, inputs.shape.grid_cols,
                              needs_routing ? &current_routing() : nullptr);
  placement_.validate();
  home_ = options.ranks.placement.token_groups ? homes_of(placement_, current_routing())
                                               : consecutive_homes(inputs.shape.num_tokens, group);
  ranks_.resize(at(group.ranks));
  for (std::size_t token = 0; token < home_.size(); ++token) {
    ranks_[at(home_[token])].tokens.push_back(static_cast<std::int32_t>(token));
  }
  if (!inputs.fixed_routing) {
    stages_ = {Stage::kRouterProject, Stage::kRouterSelect};
  }
  stages_.insert(stages_.end(), {Stage::kTokenDispatch, Stage::kSchedule});
  if (is_fused(options_.kind)) {
    stages_.push_back(Stage::kExperts);
  } else {
    stages_.insert(stages_.end(), {Stage::kExpertScores, Stage::kExpertCombine});
  }
  stages_.push_back(Stage::kTokenCombine);
  if (inputs.experts->shared.has_value()) {
    stages_.push_back(Stage::kSharedMlp);
  }
  report_.options = options_.ranks;
  report_.experts = placement_.experts_per_rank();
}

void RanksExecution::add_time(Stage stage, std::int64_t rank, double time_s) {
  for (RankTime& each : report_.times) {
    if (each.stage == stage && each.rank == rank) {
      each.time_s += time_s;  // before and after the exchange
      return;
    }
  }
  report_.times.push_back({rank, stage, time_s});
}

template <class Body>
void RanksExecution::on_each(Stage stage, const Body& body) {
  for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
    const auto start = std::chrono::steady_clock::now();
    body(static_cast<std::int64_t>(rank), ranks_[rank]);
    add_time(stage, static_cast<std::int64_t>(rank),
             std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
}

std::vector<std::vector<Message>> RanksExecution::exchange(Stage stage,
                                                           std::vector<std::vector<Message>> sent) {
  const std::int64_t ranks = std::ssize(ranks_);
  std::vector<std::int64_t>& moved =
      stage == Stage::kTokenDispatch ? report_.moved.dispatch : report_.moved.combine;
  moved.assign(at(ranks * ranks), 0);
  for (std::int64_t from = 0; from < ranks; ++from) {
    for (std::int64_t to = 0; to < ranks; ++to) {
      moved[at(from * ranks + to)] = from == to ? 0 : std::ssize(sent[at(from)][at(to)]);
    }
  }
  std::vector<std::vector<Message>> got(at(ranks));
  std::vector<std::exception_ptr> failures(at(ranks));
  {
    std::vector<std::jthread> threads;
    for (std::int64_t rank = 0; rank < ranks; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          got[at(rank)] = transport_->exchange(rank, stage, std::move(sent[at(rank)]));
        } catch (...) {
          failures[at(rank)] = std::current_exception();
        }
      });
    }
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) {
      std::rethrow_exception(failure);
    }
  }
  return got;
}

LayerInputs RanksExecution::home_inputs(const Rank& rank) const {
  LayerInputs own;
  own.shape = inputs_.shape;
  own.shape.num_tokens = std::ssize(rank.tokens);
  own.hidden_states = take_rows(inputs_.hidden_states, rank.tokens);
  own.router = {inputs_.router.row.clone(), inputs_.router.col.clone(), inputs_.router.row_bias,
                inputs_.router.col_bias};
  own.experts = inputs_.experts;
  return own;
}

/// Every home selects for its own tokens; K pairs of token t are pairs t * K and on.
void RanksExecution::route_tokens() {
  const LayerShape& shape = inputs_.shape;
  routing_ = {};
  routing_.num_tokens = shape.num_tokens;
  routing_.grid_rows = shape.grid_rows;
  routing_.grid_cols = shape.grid_cols;
  routing_.expert_ids.resize(at(shape.num_pairs()));
  routing_.gates.resize(at(shape.num_pairs()));
  for (std::int64_t token = 0; token <= shape.num_tokens; ++token) {
    routing_.token_offsets.push_back(token * shape.top_k);
  }
  on_each(Stage::kRouterSelect, [&](std::int64_t, Rank& rank) {
    if (rank.tokens.empty()) {
      return;
    }
    LayerShape own = shape;
    own.num_tokens = std::ssize(rank.tokens);
    const Routing mine = router_select(own, rank.logits);
    rank.logits = {};
    for (std::size_t i = 0; i < rank.tokens.size(); ++i) {
      const auto ids = mine.ids_of(static_cast<std::int64_t>(i));
      const auto gates = mine.gates_of(static_cast<std::int64_t>(i));
      std::ranges::copy(ids, routing_.expert_ids.begin() + rank.tokens[i] * shape.top_k);
      std::ranges::copy(gates, routing_.gates.begin() + rank.tokens[i] * shape.top_k);
    }
  });
}

void RanksExecution::dispatch() {
  const Exchange how = options_.ranks.exchange;
  std::vector<std::vector<Message>> messages(ranks_.size());
  plan_ = plan_exchange(how, placement_, current_routing(), home_);
  on_each(Stage::kTokenDispatch, [&](std::int64_t from, Rank& rank) {
    for (std::int64_t to = 0; to < std::ssize(ranks_); ++to) {
      messages[at(from)].push_back(pack_tokens(inputs_, current_routing(), plan_, rank.tokens, from, to));
    }
  });
  messages = exchange(Stage::kTokenDispatch, std::move(messages));
  on_each(Stage::kTokenDispatch, [&](std::int64_t to, Rank& rank) {
    rank.received = unpack_tokens(inputs_, placement_, how, messages[at(to)], to);
    messages[at(to)].clear();
  });
}

void RanksExecution::combine() {
  const bool gather = options_.ranks.exchange == Exchange::kGather;
  std::vector<std::vector<Message>> messages(ranks_.size());
  on_each(Stage::kTokenCombine, [&](std::int64_t from, Rank& rank) {
    for (std::int64_t to = 0; to < std::ssize(ranks_); ++to) {
      messages[at(from)].push_back(from == to
                                       ? Message{}
                                       : pack_sums(rank.sums, rank.received.offsets[at(to)],
                                                   rank.received.offsets[at(to + 1)], inputs_.shape.dtype));
    }
  });
  messages = exchange(Stage::kTokenCombine, std::move(messages));
  y_ = HostTensor::zeros(Dtype::kF32, inputs_.shape.num_tokens, inputs_.shape.hidden_size);
  on_each(Stage::kTokenCombine, [&](std::int64_t home, Rank& rank) {
    for (std::int64_t from = 0; from < std::ssize(ranks_); ++from) {
      const std::int64_t link = plan_.link(home, from);
      const auto jobs =
          std::span(plan_.job_tokens).subspan(at(plan_.job_offsets[at(link)]), at(plan_.jobs(home, from)));
      const std::span<const std::int32_t> tokens = gather ? std::span<const std::int32_t>(rank.tokens) : jobs;
      if (from == home) {
        add_rows(rank.sums, rank.received.offsets[at(home)], tokens, y_);
      } else {
        add_sums(messages[at(home)][at(from)], inputs_.shape.dtype, tokens, from, home, y_);
      }
    }
  });
  for (Rank& rank : ranks_) {
    rank.received = {};
    rank.schedule = {};
    rank.sums = {};
  }
}

const RankReport* RanksExecution::rank_report() const {
  if (!plan_.job_offsets.empty()) {
    validate(plan_, placement_, current_routing());
    const LayerShape& shape = inputs_.shape;
    report_.tokens = plan_.tokens_per_rank();
    report_.pairs = plan_.pairs_per_rank();
    report_.planned = link_bytes(plan_, ExchangeSizes::of(plan_.exchange, shape.hidden_size, shape.dtype));
    report_.moved.group = plan_.group;
    const PlacementUse use = placement_use(plan_, placement_, current_routing());
    report_.ranks_per_token = use.ranks_per_token;
    report_.remote_ranks_per_token = use.remote_ranks_per_token;
  }
  return &report_;
}

void RanksExecution::share() {
  on_each(Stage::kSharedMlp, [&](std::int64_t, Rank& rank) {
    if (!rank.tokens.empty()) {
      const HostTensor x = take_rows(inputs_.hidden_states, rank.tokens);
      add_rows(gated_mlp(x, *inputs_.experts->shared, inputs_.shape.activation), 0, rank.tokens, y_);
    }
  });
}

void RanksExecution::compute(Stage stage) {
  if (stage == stages_.front()) {
    report_.times.clear();
  }
  switch (stage) {
    case Stage::kRouterProject:
      return on_each(stage, [&](std::int64_t, Rank& rank) {
        rank.logits = rank.tokens.empty() ? RouterLogits{} : router_project(home_inputs(rank));
      });
    case Stage::kRouterSelect:
      return route_tokens();
    case Stage::kTokenDispatch:
      return dispatch();
    case Stage::kSchedule:
      return on_each(
          stage, [&](std::int64_t, Rank& rank) { rank.schedule = build(rank.received.routing, options_); });
    case Stage::kExpertScores:
      return on_each(stage, [&](std::int64_t, Rank& rank) {
        rank.scores = expert_scores(rank.received.inputs, rank.received.routing, rank.schedule);
      });
    case Stage::kExpertCombine:
      return on_each(stage, [&](std::int64_t, Rank& rank) {
        rank.sums = expert_combine(rank.received.inputs, rank.received.routing, rank.schedule, rank.scores);
        rank.scores = {};
      });
    case Stage::kExperts:
      return on_each(stage, [&](std::int64_t, Rank& rank) {
        rank.sums = experts(rank.received.inputs, rank.received.routing, rank.schedule);
      });
    case Stage::kTokenCombine:
      return combine();
    case Stage::kSharedMlp:
      return share();
    default:
      throw InternalError(fmt::format("{} is no stage of a layer's forward", to_string(stage)));
  }
}

std::vector<StageMemory> RanksExecution::memory() const {
  const LayerShape& shape = inputs_.shape;
  const std::int64_t row = shape.hidden_size * dtype_bytes(shape.dtype);
  std::int64_t rows = 0;
  for (std::int64_t from = 0; from < plan_.group.ranks && !plan_.job_offsets.empty(); ++from) {
    for (std::int64_t to = 0; to < plan_.group.ranks; ++to) {
      rows +=
          plan_.exchange == Exchange::kGather ? std::ssize(ranks_[at(from)].tokens) : plan_.jobs(from, to);
    }
  }
  const std::int64_t sums = rows * shape.hidden_size * dtype_bytes(Dtype::kF32);
  std::vector<StageMemory> memory = {{Stage::kTokenDispatch, 2 * rows * row + 2 * shape.num_pairs() * 8},
                                     {Stage::kSchedule, shape.num_pairs() * (8 + 8 + 4)},
                                     {Stage::kTokenCombine, rows * row + sums}};
  memory.push_back({is_fused(options_.kind) ? Stage::kExperts : Stage::kExpertCombine, sums});
  return memory;
}

std::string RanksExecution::kernels(Stage stage) const {
  return fmt::format("cpu {} on {} ranks ({}, {}, {})", to_string(stage), ranks_.size(),
                     to_string(options_.kind), options_.ranks.placement.text(),
                     to_string(options_.ranks.exchange));
}

}  // namespace moescope::reference
