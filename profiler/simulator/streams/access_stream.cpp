#include "profiler/simulator/streams/access_stream.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "core/base/error.hpp"
#include "core/tiling/chunks.hpp"
#include "core/tiling/selection_form.hpp"
#include "core/tiling/token_split.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope {
namespace detail {
namespace {

/// Most pairs that CUB sorts with one block: 256 threads of 19.
constexpr std::int64_t kSingleTilePairs = 4864;

/// Stage schedule of the grouped schedules (kernels/schedule/schedule.cu): passes over the pairs, and
/// launches that move next to nothing (CUB clears its states before each scan and each pass of a sort). Keys
/// are 2 bytes up to 65536 items. Code: kernels of schedule.cu and CUB as compiled for sm_90a.
void add_schedule(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  constexpr AccessKind kRead = AccessKind::kRead;
  constexpr AccessKind kWrite = AccessKind::kWrite;
  const std::int64_t pairs = context.routing->num_pairs();
  const std::int64_t ids = pairs * 4;
  const std::int64_t keys = pairs * 2;
  const std::int64_t ranks = context.shape.num_experts() * 4;
  const auto entries = static_cast<std::int64_t>(context.schedule->tokens.size()) * 4;
  const std::uint64_t keys_a = context.map.scratch;
  const std::uint64_t keys_b = keys_a + static_cast<std::uint64_t>(keys);
  const std::uint64_t values = keys_b + static_cast<std::uint64_t>(keys);
  const std::uint64_t ranks_at = values + static_cast<std::uint64_t>(ids);
  const std::uint64_t sorted = context.map.schedule;
  const std::uint64_t lists = sorted + static_cast<std::uint64_t>(ids);
  const auto pass = [&](const char* name, std::vector<PassPart> parts, std::int64_t code_bytes,
                        double issue_per_pair = 0) {
    add_pass(launches, Stage::kSchedule, name, std::move(parts), issue_per_pair * static_cast<double>(pairs),
             code_bytes);
  };
  const double sort_issue = context.constants().sort_issue_per_pair;
  pass("clear ranks", {{ranks_at, ranks, kWrite}}, 0);
  if (context.schedule->kind == ScheduleKind::kStaircase) {
    pass("cover", {{context.map.expert_ids, ids, kRead}, {keys_a, keys, kWrite}}, 25'088);
  } else {
    pass("flag experts", {{context.map.expert_ids, ids, kRead}, {ranks_at, ranks, kWrite}}, 3'072);
  }
  pass("clear scan", {}, 0);
  pass("rank experts", {{ranks_at, ranks, kRead}, {ranks_at, ranks, kWrite}}, 21'376);
  pass("keys", {{context.map.expert_ids, ids, kRead}, {keys_a, keys, kWrite}, {sorted, ids, kWrite}}, 11'648);
  if (pairs > kSingleTilePairs) {
    pass("clear counts", {}, 0);
    pass("count keys", {{keys_a, keys, kRead}}, 11'136);
    pass("rank digits", {}, 0);
    pass("clear low", {}, 0);
  }
  pass("sort, low byte",
       {{keys_a, keys, kRead}, {sorted, ids, kRead}, {keys_b, keys, kWrite}, {values, ids, kWrite}}, 40'960,
       sort_issue);
  if (pairs > kSingleTilePairs) {
    pass("clear high", {}, 0);
    pass("sort, high byte",  // by the same kernel
         {{keys_b, keys, kRead}, {values, ids, kRead}, {keys_a, keys, kWrite}, {sorted, ids, kWrite}}, 0,
         sort_issue);
  }
  pass("clear selection", {}, 0);
  pass("find entries", {{keys_a, keys, kRead}, {sorted, ids, kRead}, {lists, entries, kWrite}}, 119'936);
  pass("tokens of entries",
       {{lists, entries, kRead}, {lists + static_cast<std::uint64_t>(entries), entries, kWrite}}, 43'520);
  pass("clear scan of tiles", {}, 0);
  pass("rank tiles", {}, 0);
}

/// As compiled for sm_90a.
constexpr std::int64_t kActivateCodeBytes = 3'840;
constexpr std::int64_t kRoundCodeBytes = 5'632;

void add_shared_mlp(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const LayerShape& shape = context.shape;
  const std::int64_t h = shape.shared_size;
  const std::int64_t e = context.element_bytes;
  const std::int64_t chunk = SharedMlpChunks::tokens(shape.num_tokens, h);
  const std::int64_t row = SharedMlpChunks::row_bytes(h);
  for (std::int64_t first = 0; first < shape.num_tokens; first += chunk) {
    const std::int64_t tokens = std::min(chunk, shape.num_tokens - first);
    Product up{.m = tokens, .n = 2 * h, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
    up.a = {context.x_row(first), context.row_bytes, e};
    up.b = {context.map.shared, context.row_bytes, e};
    up.d = {context.map.shared_scratch, row, 4};
    add_product(launches, Stage::kSharedMlp, "gate and up", up, context);
    // A block per token; its result takes the place of the row's beginning.
    launches.push_back({Stage::kSharedMlp, "activate", tokens, 8,
                        [context, row, h, e](std::int64_t token, WorkUnit& unit) {
                          unit.clear();
                          unit.dependent_steps = 1;
                          const std::uint64_t at =
                              context.map.shared_scratch + static_cast<std::uint64_t>(token * row);
                          unit.bursts.push_back(burst(at, row, AccessKind::kRead));
                          unit.bursts.push_back(burst(at, h * e, AccessKind::kWrite));
                        },
                        kActivateCodeBytes});
    Product down{.m = tokens, .n = shape.hidden_size, .k = h, .a = {}, .b = {}, .d = {}};
    down.a = {context.map.shared_scratch, row, e};
    down.b = {context.map.shared + static_cast<std::uint64_t>(2 * h * context.row_bytes), h * e, e};
    down.d = {context.map.shared_result + static_cast<std::uint64_t>(first * shape.hidden_size * 4),
              shape.hidden_size * 4, 4};
    add_product(launches, Stage::kSharedMlp, "down", down, context);
  }
}

/// What ends a layer: sums and the shared MLP's result to storage.
void add_finish(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const LayerShape& shape = context.shape;
  const std::int64_t values = shape.num_tokens * shape.hidden_size;
  const bool rounds = shape.dtype == Dtype::kBF16;
  if (!rounds && shape.shared_size == 0) {
    return;
  }
  const std::int64_t sum_bytes = context.on_strips() ? context.strip_sum_bytes() : 4;
  std::vector<PassPart> parts = {{context.map.working, values * sum_bytes, AccessKind::kRead}};
  if (shape.shared_size > 0) {
    parts.push_back({context.map.shared_result, values * 4, AccessKind::kRead});
  }
  parts.push_back(
      {rounds ? context.map.output : context.map.working, values * (rounds ? 2 : 4), AccessKind::kWrite});
  add_pass(launches, launches.back().stage, "round output", std::move(parts), 0, kRoundCodeBytes);
}

void add_experts(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  switch (context.schedule->kind) {
    case ScheduleKind::kTokenCentric:
      add_token_pairs(launches, Stage::kExperts, true, true, context, true);
      return;
    case ScheduleKind::kExpertCentric:
      add_pair_tiles(launches, Stage::kExperts, false, context);
      return;
    case ScheduleKind::kStaircase:
      if (context.on_strips()) {
        add_strips(launches, context);
      } else if (context.schedule->options.deterministic) {
        add_pair_tiles(launches, Stage::kExpertScores, true, context);
        add_token_pairs(launches, Stage::kExpertCombine, false, true, context, false);
      } else {
        add_pair_tiles(launches, Stage::kExperts, false, context);
      }
      return;
    case ScheduleKind::kDenseMasked:
      add_dense_masked(launches, context);
      return;
    case ScheduleKind::kSparseLibrary:
    case ScheduleKind::kAuto:
      break;
  }
  throw InvalidArgument("schedule", to_string(context.schedule->kind),
                        "has no access stream: sparse_library is not ours, auto must be resolved first");
}

}  // namespace

void add_router(std::vector<KernelLaunch>& launches, const StreamContext& context) {
  const LayerShape& shape = context.shape;
  const std::int64_t sides = shape.grid_rows + shape.grid_cols;
  Product logits{.m = shape.num_tokens, .n = sides, .k = shape.hidden_size, .a = {}, .b = {}, .d = {}};
  logits.a = {context.map.x, context.row_bytes, context.element_bytes};
  logits.b = {context.map.router, context.row_bytes, context.element_bytes};
  logits.d = {context.map.working, sides * 4, 4};
  add_product(launches, Stage::kRouterProject, "logits", logits, context);

  if (context.on_strips()) {
    add_strip_select(launches, context);
    return;
  }
  add_select(launches, "select", context);
}

void add_select(std::vector<KernelLaunch>& launches, std::string name, const StreamContext& context) {
  const std::int64_t sides = context.shape.grid_rows + context.shape.grid_cols;
  // A block per token; so many fit a multiprocessor by their registers.
  const std::int64_t side = std::max(context.shape.grid_rows, context.shape.grid_cols);
  launches.push_back(
      {Stage::kRouterSelect, std::move(name), context.shape.num_tokens, side <= kSideInTenRegisters ? 20 : 8,
       [context, sides](std::int64_t token, WorkUnit& unit) {
         unit.clear();
         const std::int64_t first = context.routing->token_offsets[token];
         const std::int64_t pairs = context.routing->token_offsets[token + 1] - first;
         const auto offset = static_cast<std::uint64_t>(first * 4);
         const StreamConstants& c = context.constants();
         const bool eight_warps = csr_by_eight_warps(context.shape, context.options.gpu);
         // Counting visits every row, listing columns goes by the longest.
         const SelectedRows selected = selected_rows(context.routing->ids_of(token), context.shape.grid_cols);
         const auto rows = static_cast<double>(selected.rows);
         const auto longest = static_cast<double>(selected.longest);
         unit.chain_steps = eight_warps ? c.select_row_steps + c.select_row_steps_per_row * rows +
                                              c.select_row_steps_per_length * longest
                                        : c.select_list_steps + c.select_list_steps_per_row * rows +
                                              c.select_list_steps_per_length * longest +
                                              c.select_list_steps_per_logit * static_cast<double>(sides) +
                                              c.select_list_steps_per_pair * static_cast<double>(pairs);
         unit.instructions = c.select_instructions_per_token +
                             c.select_instructions_per_logit * static_cast<double>(sides) +
                             c.select_instructions_per_pair * static_cast<double>(pairs);
         unit.bursts.push_back(burst(context.map.working + static_cast<std::uint64_t>(token * sides * 4),
                                     sides * 4, AccessKind::kReadCached));
         unit.bursts.push_back(burst(context.map.expert_ids + offset, pairs * 4, AccessKind::kWrite));
         unit.bursts.push_back(burst(context.map.gates + offset, pairs * 4, AccessKind::kWrite));
       },
       context.constants().select_code_bytes});
  launches.back().dependent = true;
}

SelectedRows selected_rows(std::span<const std::int32_t> ids, std::int64_t cols) {
  SelectedRows selected;
  std::int64_t last = -1;
  std::int64_t length = 0;
  for (const std::int32_t id : ids) {
    const std::int64_t row = id / cols;
    length = row == last ? length + 1 : 1;
    selected.rows += row == last ? 0 : 1;
    selected.longest = std::max(selected.longest, length);
    last = row;
  }
  return selected;
}

void require_row_width(std::int64_t hidden_size, Dtype dtype) {
  if (hidden_size % 8 != 0 || hidden_size * dtype_bytes(dtype) > TokenSplit::max_row_bytes()) {
    throw InvalidArgument("hidden_size", fmt::to_string(hidden_size),
                          fmt::format("the CUDA kernels need a multiple of 8 up to {} for {}",
                                      TokenSplit::max_row_bytes() / dtype_bytes(dtype), to_string(dtype)));
  }
}

void charge_code_once(std::vector<KernelLaunch>& launches) {
  std::set<std::string> before;
  for (KernelLaunch& launch : launches) {
    launch.code_bytes = before.insert(launch.name).second ? launch.code_bytes : 0;
  }
}

TensorMap::TensorMap(const LayerShape& shape, StripRule rule) {
  std::uint64_t next = 0;
  const auto place = [&next](std::uint64_t& tensor, std::int64_t bytes) {
    tensor = next;
    next += static_cast<std::uint64_t>(round_up(bytes, 4096));
  };
  const std::int64_t row = shape.hidden_size * dtype_bytes(shape.dtype);
  const std::int64_t pairs = shape.num_pairs();
  place(x, shape.num_tokens * row);
  place(router, (shape.grid_rows + shape.grid_cols) * row);
  place(w_in, shape.num_experts() * row);
  place(w_out, shape.num_experts() * row);
  place(shared, 3 * shape.shared_size * row);
  place(token_offsets, (shape.num_tokens + 1) * 8);
  place(expert_ids, pairs * 4);
  place(gates, pairs * 4);
  place(schedule, 3 * (pairs + 1) * 4);
  place(strips, static_cast<std::int64_t>(StripArrays(shape, rule, 0).end));
  place(working, shape.num_tokens * std::max(shape.hidden_size, shape.grid_rows + shape.grid_cols) * 4);
  place(output, shape.num_tokens * row);
  place(shared_result, shape.shared_size > 0 ? shape.num_tokens * shape.hidden_size * 4 : 0);
  place(shared_scratch, shape.shared_size > 0 ? SharedMlpChunks::tokens(shape.num_tokens, shape.shared_size) *
                                                    SharedMlpChunks::row_bytes(shape.shared_size)
                                              : 0);
  place(scratch, 0);
}

Burst burst(std::uint64_t address, std::int64_t bytes, AccessKind kind, std::int64_t rows,
            std::int64_t pitch_bytes) {
  return {address, static_cast<std::uint32_t>(bytes), static_cast<std::uint32_t>(rows),
          static_cast<std::uint64_t>(pitch_bytes), kind};
}

}  // namespace detail

void WorkUnit::clear() {
  bursts.clear();
  tensor_flop = 0;
  cuda_core_flop = 0;
  instructions = 0;
  multicast_bytes = 0;
  clocks = 0;
  dependent_steps = 0;
  chain_steps = 0;
}

namespace detail {

StreamContext make_context(const LayerShape& shape, const Routing& routing, const Schedule& schedule,
                           const StreamOptions& options, bool fixed_routing) {
  shape.validate();
  if (!options.constants.known()) {
    throw InvalidArgument("calibration", "none",
                          "has no constants of the kernels, and no device's folder has any");
  }
  require_row_width(shape.hidden_size, shape.dtype);
  const std::int64_t row_bytes = shape.hidden_size * dtype_bytes(shape.dtype);
  StreamContext context{shape,
                        &routing,
                        &schedule,
                        options,
                        TensorMap(shape, schedule.options.strip_rule),
                        row_bytes,
                        dtype_bytes(shape.dtype)};
  const bool groups = std::ranges::any_of(
      schedule.items, [](const WorkItem& item) { return item.kind == WorkItemKind::kGroup; });
  // Thresholds come from the router and describe strips only: other routing takes the lists of pairs.
  if (groups || fixed_routing || shape.dtype != Dtype::kBF16) {
    context.options.staircase = StaircaseKernels::kLists;
  }
  return context;
}

}  // namespace detail

std::vector<KernelLaunch> layer_stream(const LayerShape& shape, const Routing& routing,
                                       const Schedule& schedule, const StreamOptions& options,
                                       bool fixed_routing) {
  const detail::StreamContext context =
      detail::make_context(shape, routing, schedule, options, fixed_routing);
  if (!context.on_strips() && schedule.options.strip_rule == StripRule::kRowsOnly) {
    throw InvalidArgument("schedule", to_string(schedule.options),
                          "rows alone need the router's scores, bf16 and kernels that take thresholds");
  }
  std::vector<KernelLaunch> launches;
  if (!fixed_routing) {
    detail::add_router(launches, context);
  }
  if (context.on_strips()) {
    detail::add_strip_schedule(launches, context);
  } else if (schedule.kind == ScheduleKind::kExpertCentric || schedule.kind == ScheduleKind::kStaircase) {
    detail::add_schedule(launches, context);
  }
  if (shape.shared_size > 0) {
    detail::add_shared_mlp(launches, context);
  }
  detail::add_experts(launches, context);
  if (schedule.kind != ScheduleKind::kTokenCentric) {  // which stores its own output
    detail::add_finish(launches, context);
  }
  detail::charge_code_once(launches);
  return launches;
}

}  // namespace moescope
