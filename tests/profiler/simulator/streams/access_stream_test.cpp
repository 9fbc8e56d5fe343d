#include "profiler/simulator/streams/access_stream.hpp"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "profiler/simulator/sim_calibration.hpp"
#include "profiler/simulator/streams/access_builder.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/launch_rows.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

LayerShape small_shape() {
  LayerShape shape;
  shape.num_tokens = 37;
  shape.hidden_size = 64;
  shape.grid_rows = 12;
  shape.grid_cols = 10;
  shape.top_k = 8;
  shape.shared_size = 16;
  return shape;
}

/// Tokens with a staircase each: the first experts of a few rows.
Routing staircase_routing(const LayerShape& shape) {
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets = {0};
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    for (const std::int64_t row : {token % 4, token % 4 + 5}) {
      for (std::int64_t c = 0; c < 4; ++c) {
        routing.expert_ids.push_back(static_cast<std::int32_t>(row * shape.grid_cols + (token + c) % 4));
      }
      std::sort(routing.expert_ids.end() - 4, routing.expert_ids.end());
    }
    routing.token_offsets.push_back(static_cast<std::int64_t>(routing.expert_ids.size()));
  }
  routing.gates.assign(routing.expert_ids.size(), 0.125F);
  routing.validate();
  return routing;
}

using test::on_large_gpu;

struct Streams {
  LayerShape shape;
  Routing routing;
  Schedule schedule;
  std::vector<KernelLaunch> launches;

  Streams(ScheduleKind kind, const StreamOptions& options = on_large_gpu(), bool deterministic = true,
          StripRule rule = StripRule::kMinimalCover, std::int64_t tokens = 37,
          std::int64_t tile_tokens = kStripTileTokens)
      : shape(small_shape()) {
    shape.num_tokens = tokens;
    routing = staircase_routing(shape);
    schedule = build_schedule(routing, {.kind = kind,
                                        .group_size = 5,
                                        .deterministic = deterministic,
                                        .strip_rule = rule,
                                        .tile_tokens = tile_tokens});
    launches = layer_stream(shape, routing, schedule, options);
  }

  /// Bytes asked of [begin, begin + size) by a stage, by kind.
  std::map<AccessKind, std::uint64_t> bytes(Stage stage, std::uint64_t begin, std::int64_t size) const {
    std::map<AccessKind, std::uint64_t> sums;
    for_each_row(stage, [&](std::uint64_t address, std::uint64_t bytes, AccessKind kind) {
      if (address >= begin && address < begin + static_cast<std::uint64_t>(size)) {
        sums[kind] += bytes;
      }
    });
    return sums;
  }
  template <class Visit>
  void for_each_row(Stage stage, const Visit& visit) const {
    test::for_each_row(launches, stage, visit);
  }
  double tensor_flop(Stage stage) const {
    double flop = 0;
    WorkUnit unit;
    for (const KernelLaunch& launch : launches) {
      for (std::int64_t u = 0; launch.stage == stage && u < launch.units; ++u) {
        launch.fill(u, unit);
        flop += unit.tensor_flop;
      }
    }
    return flop;
  }
  detail::TensorMap map() const { return {shape, schedule.options.strip_rule}; }
  std::int64_t row_bytes() const { return shape.hidden_size * 2; }
  std::int64_t matrix_bytes() const { return shape.num_experts() * row_bytes(); }
};

TEST(AccessStream, TokenCentricReadsOneRowOfWAndVPerPairAsTheTrafficModelSays) {
  const Streams s(ScheduleKind::kTokenCentric);
  const auto pairs = static_cast<std::uint64_t>(s.routing.num_pairs() * s.row_bytes());
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_in, s.matrix_bytes())[AccessKind::kReadCached], pairs);
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_out, s.matrix_bytes())[AccessKind::kReadCached], pairs);
  // The kernel ends the layer: it adds the shared MLP's result and rounds; 8-byte stores, 16 bytes apart,
  // touch every sector twice.
  const std::int64_t values = s.shape.num_tokens * s.shape.hidden_size;
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().shared_result, values * 4)[AccessKind::kReadCached],
            static_cast<std::uint64_t>(values * 4));
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().output, values * 2)[AccessKind::kWrite],
            static_cast<std::uint64_t>(values * 4));
  // Every row as often as it has pairs, whatever the split of the work.
  std::map<std::uint64_t, std::int64_t> seen;
  s.for_each_row(Stage::kExperts, [&](std::uint64_t address, std::uint64_t, AccessKind) {
    if (address >= s.map().w_in && address < s.map().w_in + static_cast<std::uint64_t>(s.matrix_bytes())) {
      ++seen[(address - s.map().w_in) / static_cast<std::uint64_t>(s.row_bytes())];
    }
  });
  const auto loads = expert_loads(s.routing);
  for (std::size_t e = 0; e < loads.size(); ++e) {
    EXPECT_EQ(seen[e], loads[e]) << "expert " << e;
  }
}

TEST(AccessStream, TilesReadTheirItemsAndAddToEachOfTheirTokens) {
  const Streams s(ScheduleKind::kExpertCentric);
  std::uint64_t experts = 0;
  std::uint64_t entries = 0;
  for (const WorkItem& item : s.schedule.items) {  // fewer than 128 tokens: one tile each
    experts += static_cast<std::uint64_t>(item.expert_end - item.expert_begin);
    entries += static_cast<std::uint64_t>(item.token_end - item.token_begin);
  }
  const auto row = static_cast<std::uint64_t>(s.row_bytes());
  const std::uint64_t asked = row * 3 / 2;  // half of a row is asked for twice, as counted
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_in, s.matrix_bytes())[AccessKind::kRead], experts * asked);
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_out, s.matrix_bytes())[AccessKind::kRead], experts * asked);
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().x, s.shape.num_tokens * s.row_bytes())[AccessKind::kRead],
            entries * asked);
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().working,
                    s.shape.num_tokens * s.shape.hidden_size * 4)[AccessKind::kReduce],
            entries * row * 2);
}

TEST(AccessStream, StripsReadWholeRowsAndColumnsOfTheGrid) {
  for (const bool deterministic : {true, false}) {
    for (const std::int64_t tile : {4, 128}) {
      for (const std::int64_t segment : {4, 320}) {
        StreamOptions options = on_large_gpu();
        options.strip_segment_experts = segment;
        const Streams s(ScheduleKind::kStaircase, options, deterministic, StripRule::kMinimalCover, 37, tile);
        std::uint64_t experts = 0;
        std::uint64_t sums = 0;
        for (const WorkItem& item : s.schedule.items) {
          const bool row = item.kind == WorkItemKind::kRowStrip;
          const std::int64_t length = row ? s.shape.grid_cols : s.shape.grid_rows;
          const std::int64_t tokens = item.token_end - item.token_begin;
          experts += static_cast<std::uint64_t>(length * ((tokens + tile - 1) / tile));
          sums += static_cast<std::uint64_t>(tokens * ((length + segment - 1) / segment));
        }
        EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_in, s.matrix_bytes())[AccessKind::kRead],
                  experts * static_cast<std::uint64_t>(s.row_bytes()));
        EXPECT_EQ(s.bytes(Stage::kExperts, s.map().w_out, s.matrix_bytes())[AccessKind::kRead],
                  experts * static_cast<std::uint64_t>(s.row_bytes()));
        // int32 sums when they have to be repeatable, else fp16; cleared before, rounded after.
        const std::int64_t sum_bytes = s.shape.hidden_size * (deterministic ? 4 : 2);
        auto of_sums = s.bytes(Stage::kExperts, s.map().working, s.shape.num_tokens * sum_bytes);
        EXPECT_EQ(of_sums[AccessKind::kReduceKept], sums * static_cast<std::uint64_t>(sum_bytes));
        EXPECT_EQ(of_sums[AccessKind::kWrite], static_cast<std::uint64_t>(s.shape.num_tokens * sum_bytes));
        EXPECT_EQ(of_sums[AccessKind::kRead], static_cast<std::uint64_t>(s.shape.num_tokens * sum_bytes));
      }
    }
  }
}

/// Bytes that the staircase's selection and schedule ask for, computed by hand from what the kernels read
/// and write (kernels/router/router_select_strips.cu, schedule_strips.cu).
TEST(AccessStream, StripsAreSelectedAndListedAsTheKernelsDo) {
  // Of 600 tokens each has a warp, of 37 eight, which find the log-softmax in L1.
  for (const auto& [rule, count] : {std::pair{StripRule::kMinimalCover, 37},
                                    {StripRule::kRowsOnly, 37},
                                    {StripRule::kMinimalCover, 600},
                                    {StripRule::kRowsOnly, 600}}) {
    const Streams s(ScheduleKind::kStaircase, on_large_gpu(), true, rule, count);
    const auto tokens = static_cast<std::uint64_t>(s.shape.num_tokens);
    const auto rows = static_cast<std::uint64_t>(s.shape.grid_rows);
    const auto cols = static_cast<std::uint64_t>(s.shape.grid_cols);
    const auto entries = static_cast<std::uint64_t>(s.schedule.tokens.size());
    const detail::StripArrays arrays(s.shape, rule, s.map().strips);
    const auto of = [&](Stage stage, std::uint64_t begin, std::uint64_t end) {
      return s.bytes(stage, begin, static_cast<std::int64_t>(end - begin));
    };
    using enum Stage;
    EXPECT_EQ(of(kRouterSelect, s.map().working, s.map().output)[AccessKind::kReadCached],
              tokens * (rows + cols) * 4);
    // Rows alone: whether a column belongs to the cover is not asked.
    const std::uint64_t read_again = count == 37 ? 0 : rule == StripRule::kRowsOnly ? rows : rows + cols;
    auto log_probs = of(kRouterSelect, arrays.row_log_probs, arrays.of_tokens);
    EXPECT_EQ(log_probs[AccessKind::kWrite], tokens * (2 * rows + cols) * 4);
    EXPECT_EQ(log_probs[AccessKind::kRead], tokens * read_again * 4);
    EXPECT_EQ(of(kRouterSelect, arrays.of_tokens, arrays.cover)[AccessKind::kWrite], tokens * 16);
    EXPECT_EQ(of(kRouterSelect, arrays.cover, arrays.counts)[AccessKind::kWrite], entries * 8);
    EXPECT_EQ(of(kRouterSelect, arrays.counts, arrays.tokens)[AccessKind::kReduce], entries * 4);
    EXPECT_EQ(of(kSchedule, arrays.tokens, arrays.end)[AccessKind::kWrite], entries * 4);
    EXPECT_EQ(of(kSchedule, arrays.cover, arrays.counts)[AccessKind::kReadCached], entries * 8);
    EXPECT_EQ(of(kSchedule, arrays.counts, arrays.tokens)[AccessKind::kWrite], (rows + cols) * 4);
    // Registers that are spilled: 512 bytes a token, for here no warp has two.
    EXPECT_EQ(of(kSchedule, s.map().scratch, s.map().scratch + (1U << 30U))[AccessKind::kWrite],
              tokens * 512);
  }
}

/// Every row that a token uses, and no column.
TEST(AccessStream, RowsAloneReadEachUsedRowOnceAndKeepListsForThem) {
  const StreamOptions options = on_large_gpu();
  const Streams s(ScheduleKind::kStaircase, options, false, StripRule::kRowsOnly);
  // staircase_routing(): rows 0 to 8, two of them per token, whose 37 tokens fit one tile.
  ASSERT_EQ(s.schedule.items.size(), 8U);
  ASSERT_EQ(s.schedule.tokens.size(), 2U * 37);
  const auto strip = static_cast<std::uint64_t>(s.shape.grid_cols * s.row_bytes());
  for (const std::uint64_t matrix : {s.map().w_in, s.map().w_out}) {
    EXPECT_EQ(s.bytes(Stage::kExperts, matrix, s.matrix_bytes())[AccessKind::kRead], 8 * strip);
  }
  EXPECT_EQ(s.bytes(Stage::kExperts, s.map().x, 37 * s.row_bytes())[AccessKind::kRead],
            static_cast<std::uint64_t>(2 * 37 * s.row_bytes()));
  // Of the log-probabilities of the other axis, columns' alone; a row's own is one number.
  const detail::StripArrays arrays(s.shape, StripRule::kRowsOnly, s.map().strips);
  const auto of = [&](std::uint64_t begin, std::uint64_t end) {
    return s.bytes(Stage::kExperts, begin, static_cast<std::int64_t>(end - begin));
  };
  EXPECT_EQ(of(arrays.col_log_probs, arrays.uncovered_rows)[AccessKind::kRead], 2U * 37 * 10 * 4);
  EXPECT_EQ(of(arrays.row_log_probs, arrays.col_log_probs)[AccessKind::kReadCached], 2U * 37 * 4);
  EXPECT_TRUE(of(arrays.uncovered_rows, arrays.of_tokens).empty());
  // A token may use as many rows as it has experts: 8, where a cover has at most 5 strips.
  EXPECT_EQ(arrays.ranks - arrays.cover, round_up(37 * 8 * 4, 256));
  const detail::StripArrays covers(s.shape, StripRule::kMinimalCover, s.map().strips);
  EXPECT_EQ(covers.ranks - covers.cover, round_up(37 * 5 * 4, 256));
}

TEST(AccessStream, SelectionsChainsGoByRowsAndTheLongest) {
  const auto shape = [](const std::vector<std::int32_t>& ids) {
    const detail::SelectedRows selected = detail::selected_rows(ids, 10);
    return std::pair(selected.rows, selected.longest);
  };
  EXPECT_EQ(shape({}), std::pair(std::int64_t{0}, std::int64_t{0}));
  EXPECT_EQ(shape({7}), std::pair(std::int64_t{1}, std::int64_t{1}));
  EXPECT_EQ(shape({9, 10, 11, 19, 30}), std::pair(std::int64_t{3}, std::int64_t{3}));
  EXPECT_EQ(shape({0, 1, 2, 3, 4, 5}), std::pair(std::int64_t{1}, std::int64_t{6}));
}

/// What was read off a GPU's rows is data: streams follow it, and do not run without.
TEST(AccessStream, ConstantsOfKernelsAreThoseOfTheCalibration) {
  StreamOptions options = on_large_gpu();
  const auto first = [&](ScheduleKind kind, Stage stage) {
    const Streams s(kind, options);
    WorkUnit unit;
    std::int64_t code_bytes = -1;
    for (const KernelLaunch& launch : s.launches) {
      if (launch.stage == stage && code_bytes < 0) {
        launch.fill(0, unit);
        code_bytes = launch.code_bytes;
      }
    }
    return std::pair(std::move(unit), code_bytes);
  };
  const auto before = first(ScheduleKind::kTokenCentric, Stage::kRouterSelect);
  const auto pairs = first(ScheduleKind::kTokenCentric, Stage::kExperts);
  options.constants.select_instructions_per_token += 100;
  options.constants.select_code_bytes = 12'800;
  options.constants.select_row_steps += 7;  // a small batch: eight warps to a token
  options.constants.pair_instructions *= 2;
  const auto after = first(ScheduleKind::kTokenCentric, Stage::kRouterSelect);
  EXPECT_EQ(after.first.instructions, before.first.instructions + 100);
  EXPECT_DOUBLE_EQ(after.first.chain_steps, before.first.chain_steps + 7);
  EXPECT_EQ(after.second, 12'800);
  EXPECT_GT(first(ScheduleKind::kTokenCentric, Stage::kExperts).first.instructions, pairs.first.instructions);

  // Rows of tiles: W and V once and no part again.
  options.constants.tile_row_reread_fraction = 0;
  const Streams once(ScheduleKind::kExpertCentric, options);
  options.constants.tile_row_reread_fraction = 0.5;
  const Streams again(ScheduleKind::kExpertCentric, options);
  const auto read = [](const Streams& s) {
    return s.bytes(Stage::kExperts, s.map().w_in, s.matrix_bytes())[AccessKind::kRead];
  };
  EXPECT_GT(read(once), 0U);
  EXPECT_EQ(read(again) * 2, read(once) * 3);

  options.constants = {};
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { Streams(ScheduleKind::kTokenCentric, options); }),
            "calibration = none: has no constants of the kernels, and no device's folder has any");
}

TEST(AccessStream, RowsAloneNeedThresholds) {
  StreamOptions options = on_large_gpu();
  options.staircase = StaircaseKernels::kLists;
  EXPECT_THROW(Streams(ScheduleKind::kStaircase, options, false, StripRule::kRowsOnly), InvalidArgument);
}

TEST(AccessStream, StaircaseOnListsWritesEveryScoreOnce) {
  StreamOptions options = on_large_gpu();
  options.staircase = StaircaseKernels::kLists;
  const Streams s(ScheduleKind::kStaircase, options);
  const std::int64_t scores = s.routing.num_pairs() * 4;
  EXPECT_EQ(s.bytes(Stage::kExpertScores, s.map().scratch, scores)[AccessKind::kWrite],
            static_cast<std::uint64_t>(scores));
  EXPECT_EQ(s.bytes(Stage::kExpertCombine, s.map().scratch, scores)[AccessKind::kReadCached],
            static_cast<std::uint64_t>(scores));
  EXPECT_GT(s.bytes(Stage::kSchedule, s.map().expert_ids, scores)[AccessKind::kRead], 0U);
}

TEST(AccessStream, DenseProductsMultiplyEverythingOnce) {
  const Streams s(ScheduleKind::kDenseMasked);
  // Output tiles are whole: at least what the mathematics needs, every row of W and V at least once.
  const double needed =
      4.0 * static_cast<double>(s.shape.num_tokens * s.shape.num_experts() * s.shape.hidden_size);
  EXPECT_GE(s.tensor_flop(Stage::kExperts), needed);
  EXPECT_GE(s.bytes(Stage::kExperts, s.map().w_in, s.matrix_bytes())[AccessKind::kRead],
            static_cast<std::uint64_t>(s.matrix_bytes()));
  EXPECT_GE(s.bytes(Stage::kExperts, s.map().w_out, s.matrix_bytes())[AccessKind::kRead],
            static_cast<std::uint64_t>(s.matrix_bytes()));
  // Shared MLP: three products of [L, d] x [d, h].
  EXPECT_GE(s.tensor_flop(Stage::kSharedMlp),
            6.0 * static_cast<double>(s.shape.num_tokens * s.shape.hidden_size * s.shape.shared_size));
}

struct ProductSums {
  double flop = 0;      ///< executed
  double received = 0;  ///< operands, multicast included
  double reduced = 0;
};

/// Of the products of each stage, on Table A with `tokens` tokens.
std::map<Stage, ProductSums> products_of(std::int64_t tokens) {
  LayerShape shape;
  shape.num_tokens = tokens;
  shape.hidden_size = 1024;
  shape.grid_rows = shape.grid_cols = 320;
  shape.top_k = 1;
  shape.shared_size = 1024;
  Routing routing;
  routing.num_tokens = tokens;
  routing.grid_rows = routing.grid_cols = 320;
  routing.token_offsets.resize(static_cast<std::size_t>(tokens) + 1);
  std::iota(routing.token_offsets.begin(), routing.token_offsets.end(), 0);
  routing.expert_ids.assign(static_cast<std::size_t>(tokens), 7);
  routing.gates.assign(static_cast<std::size_t>(tokens), 1.0F);
  const Schedule schedule = build_schedule(routing, {.kind = ScheduleKind::kTokenCentric});
  std::map<Stage, ProductSums> sums;
  WorkUnit unit;
  for (const KernelLaunch& launch : layer_stream(shape, routing, schedule, on_large_gpu())) {
    for (std::int64_t u = 0; u < launch.units; ++u) {
      launch.fill(u, unit);
      if (unit.tensor_flop > 0) {
        ProductSums& sum = sums[launch.stage];
        sum.flop += unit.tensor_flop;
        sum.received += unit.multicast_bytes;
        for (const Burst& burst : unit.bursts) {
          const double bytes = 1.0 * burst.bytes * burst.rows;
          sum.received += burst.kind == AccessKind::kRead ? bytes : 0.0;
          sum.reduced += burst.kind == AccessKind::kReduce ? bytes : 0.0;
        }
      }
    }
  }
  return sums;
}

/// Flop and operands that counters of an H100 saw at (4096, 512) on Table A (results/h100/profile.jsonl):
/// 130 tiles of 160 x 128 for the router's logits; 128 x 128 and 64 x 128 for the shared MLP. Fewer tokens
/// (validation.jsonl, l2_read_bytes): 80 x 64 for 1024 tokens, 8 x 64 for 64, k in one piece.
TEST(AccessStream, ProductsTakeTheTilesThatWereCounted) {
  auto sums = products_of(4096);
  EXPECT_EQ(sums[Stage::kRouterProject].flop, 5452595200.0);
  EXPECT_EQ(sums[Stage::kSharedMlp].flop, 25769803776.0);
  EXPECT_NEAR(sums[Stage::kRouterProject].received, 76.677e6, 0.02 * 76.677e6);  // tma_read_bytes
  EXPECT_NEAR(sums[Stage::kSharedMlp].received, 469.762e6, 0.001 * 469.762e6);
  sums = products_of(1024);
  EXPECT_NEAR(sums[Stage::kRouterProject].received, 37.91e6, 0.01 * 37.91e6);
  sums = products_of(64);
  EXPECT_NEAR(sums[Stage::kRouterProject].received, 11.82e6, 0.01 * 11.82e6);
  EXPECT_EQ(sums[Stage::kRouterProject].reduced, 0);
}

/// X, 33.5 MB that L2 does not hold, is read from HBM once for the router's logits of 16384 tokens
/// (results/h100/validation.jsonl.gz): tiles of one row of tiles follow each other closely.
TEST(AccessStream, ProductsGoAcrossTheShorterSideInStripsOfEightTiles) {
  const LayerShape shape = small_shape();
  const Routing routing = staircase_routing(shape);
  const Schedule schedule = build_schedule(routing, {.kind = ScheduleKind::kTokenCentric});
  StreamOptions options = on_large_gpu();
  options.gpu.compute_capability = 80;  // no clusters
  const detail::StreamContext context{
      shape, &routing, &schedule, options, detail::TensorMap(shape, StripRule::kMinimalCover), 128, 2};
  for (const bool more_rows : {true, false}) {
    detail::Product product;
    product.m = more_rows ? 16384 : 640;
    product.n = more_rows ? 640 : 16384;
    product.k = 64;
    product.a = {0, 128, 2};
    product.b = {std::uint64_t{1} << 30U, 128, 2};
    product.d = {std::uint64_t{2} << 30U, product.n * 4, 4};
    std::vector<KernelLaunch> launches;
    detail::add_product(launches, Stage::kRouterProject, "logits", product, context);
    ASSERT_EQ(launches.size(), 1U);
    std::map<std::uint64_t, std::vector<std::int64_t>> on_longer;  // its rows: when tiles read them
    std::set<std::uint64_t> on_shorter;
    std::set<std::uint64_t> tiles;
    WorkUnit unit;
    for (std::int64_t u = 0; u < launches.front().units; ++u) {
      launches.front().fill(u, unit);
      on_longer[unit.bursts[more_rows ? 0 : 1].address].push_back(u);
      on_shorter.insert(unit.bursts[more_rows ? 1 : 0].address);
      tiles.insert(unit.bursts.back().address);
    }
    EXPECT_EQ(static_cast<std::int64_t>(tiles.size()), launches.front().units);  // each once
    EXPECT_GT(on_longer.size(), on_shorter.size());
    for (const auto& [address, units] : on_longer) {
      EXPECT_EQ(units.size(), on_shorter.size());
      EXPECT_LT(units.back() - units.front(), static_cast<std::int64_t>(8 * on_shorter.size()));
    }
  }
}

TEST(AccessStream, HasTheStagesTheLayerHas) {
  const auto stages = [](const std::vector<KernelLaunch>& launches) {
    std::vector<Stage> order;
    for (const KernelLaunch& launch : launches) {
      if (order.empty() || order.back() != launch.stage) {
        order.push_back(launch.stage);
      }
    }
    return order;
  };
  using enum Stage;
  EXPECT_EQ(stages(Streams(ScheduleKind::kTokenCentric).launches),
            (std::vector{kRouterProject, kRouterSelect, kSharedMlp, kExperts}));
  EXPECT_EQ(stages(Streams(ScheduleKind::kExpertCentric).launches),
            (std::vector{kRouterProject, kRouterSelect, kSchedule, kSharedMlp, kExperts}));
  const Streams s(ScheduleKind::kStaircase);
  EXPECT_EQ(stages(s.launches),
            (std::vector{kRouterProject, kRouterSelect, kSchedule, kSharedMlp, kExperts}));
  // Recorded routing has no thresholds.
  EXPECT_EQ(stages(layer_stream(s.shape, s.routing, s.schedule, on_large_gpu(), true)),
            (std::vector{kSchedule, kSharedMlp, kExpertScores, kExpertCombine}));
}

TEST(AccessStream, RefusesWhatTheKernelsDoNotTake) {
  Streams s(ScheduleKind::kTokenCentric);
  s.shape.hidden_size = 12;
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { layer_stream(s.shape, s.routing, s.schedule, on_large_gpu()); }),
            "hidden_size = 12: the CUDA kernels need a multiple of 8 up to 8192 for bf16");
  s.shape.hidden_size = 64;
  s.schedule.kind = ScheduleKind::kSparseLibrary;
  EXPECT_EQ(test::error_text<InvalidArgument>(
                [&] { layer_stream(s.shape, s.routing, s.schedule, on_large_gpu()); }),
            "schedule = sparse_library: has no access stream: sparse_library is not ours, auto must be "
            "resolved first");
}

}  // namespace
}  // namespace moescope
