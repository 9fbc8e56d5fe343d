// What the kernels of the baselines ask of memory, against counts by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.hpp"
#include "core/cost/traffic.hpp"
#include "core/systems/system_cost.hpp"
#include "profiler/simulator/sim_calibration.hpp"
#include "profiler/simulator/streams/access_stream.hpp"
#include "tests/support/devices.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

using test::on_large_gpu;

SystemShape bf16_shape(System system, std::int64_t tokens, std::int64_t experts, std::int64_t top_k,
                       std::int64_t heads = 1) {
  SystemShape shape = test::system_shape(system, tokens, 64, experts, top_k, heads);
  shape.dtype = Dtype::kBF16;
  if (shape.has_ffn_experts()) {
    shape.expert_size = 24;
  }
  if (shape.shared_size > 0) {
    shape.shared_size = 40;
  }
  if (shape.has_product_keys()) {
    shape.key_size = 16;
  }
  return shape;
}

/// Query q takes the experts q % step, q % step + step, ...: some experts stay without pairs.
Routing spread(const SystemShape& shape, std::int64_t step) {
  const LayerShape row = shape.row_shape();
  Routing routing;
  routing.num_tokens = shape.num_queries();
  routing.grid_rows = row.grid_rows;
  routing.grid_cols = row.grid_cols;
  routing.token_offsets.push_back(0);
  for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
    for (std::int64_t k = 0; shape.has_routing() && k < shape.top_k_per_query(); ++k) {
      routing.expert_ids.push_back(static_cast<std::int32_t>(query % step + k * step));
      routing.gates.push_back(0.5F);
    }
    routing.token_offsets.push_back(routing.num_pairs());
  }
  routing.validate();
  return routing;
}

/// What the launches of one name do together.
struct Sums {
  std::int64_t launches = 0;
  std::int64_t read = 0;
  std::int64_t written = 0;
  std::int64_t added = 0;
  double tensor_flop = 0;
  double cuda_core_flop = 0;
  std::set<std::uint64_t> read_sectors;  ///< of 32 bytes
  std::map<std::uint64_t, int> written_sectors;
};

std::map<std::string, Sums> sums_of(const std::vector<KernelLaunch>& launches) {
  std::map<std::string, Sums> all;
  WorkUnit unit;
  for (const KernelLaunch& launch : launches) {
    Sums& sums = all[launch.name];
    ++sums.launches;
    for (std::int64_t index = 0; index < launch.units; ++index) {
      launch.fill(index, unit);
      sums.tensor_flop += unit.tensor_flop;
      sums.cuda_core_flop += unit.cuda_core_flop;
      for (const Burst& burst : unit.bursts) {
        const std::int64_t bytes = std::int64_t{burst.bytes} * burst.rows;
        const bool reads = burst.kind == AccessKind::kRead || burst.kind == AccessKind::kReadCached;
        (reads ? sums.read : burst.kind == AccessKind::kWrite ? sums.written : sums.added) += bytes;
        for (std::uint32_t row = 0; row < burst.rows; ++row) {
          const std::uint64_t begin = burst.address + row * burst.pitch_bytes;
          for (std::uint64_t at = begin / 32; at * 32 < begin + burst.bytes; ++at) {
            if (reads) {
              sums.read_sectors.insert(at);
            } else {
              ++sums.written_sectors[at];
            }
          }
        }
      }
    }
  }
  return all;
}

std::vector<Stage> stages_of(const std::vector<KernelLaunch>& launches) {
  std::vector<Stage> stages;
  for (const KernelLaunch& launch : launches) {
    if (stages.empty() || stages.back() != launch.stage) {
      stages.push_back(launch.stage);
    }
  }
  return stages;
}

TEST(SystemStream, GroupedProductsTakeEveryTileAgainstItsExpert) {
  // 300 tokens, 8 experts of which 0, 1, 4, 5 are used, each 150 times: tiles of 128 and 22 rows.
  const SystemShape shape = bf16_shape(System::kGShard, 300, 8, 2);
  const Routing routing = spread(shape, 2);
  std::vector<KernelLaunch> launches =
      system_stream(shape, routing, ScheduleKind::kExpertCentric, on_large_gpu());
  EXPECT_EQ(stages_of(launches), system_stages(System::kGShard));
  auto sums = sums_of(launches);
  const std::int64_t pairs = 600;
  const std::int64_t row = 64 * 2;
  const Sums& up = sums.at("grouped gated product");
  const std::int64_t weights = 2 * 24 * row;  // of an expert
  EXPECT_EQ(up.read, 8 * weights + pairs * row + pairs * 4);
  EXPECT_EQ(up.written, pairs * 24 * 2);
  EXPECT_EQ(up.tensor_flop, 2.0 * (4 * 128 + 4 * 64) * 256 * 64);
  // Distinct bytes: all rows of X, the weights of four experts, row ids.
  EXPECT_NEAR(static_cast<double>(up.read_sectors.size()) * 32, 300.0 * row + 4.0 * weights + pairs * 4, 64);
  for (const auto& [sector, times] : up.written_sectors) {
    EXPECT_LE(times, 2) << sector;  // rows of 48 bytes share sectors
  }
  const Sums& down = sums.at("grouped product");
  EXPECT_EQ(down.written, pairs * row);
  // The box of a tile's rows takes what lies behind them, too.
  const std::int64_t boxes = 128 + 128 + 128 + 128 + 128 + 128 + 128 + 22;
  EXPECT_EQ(down.read, 8 * 64 * 24 * 2 + boxes * 24 * 2);
  const Sums& tokens = sums.at("sums by token");
  EXPECT_EQ(tokens.read, pairs * (row + 4 + 4));
  EXPECT_NEAR(static_cast<double>(tokens.read_sectors.size()) * 32, pairs * (row + 8.0),
              64);  // each result once
  EXPECT_EQ(sums.at("place pairs").written, 2 * pairs * 4);
  EXPECT_EQ(sums.at("select experts").read, 300 * 8 * 4);
  EXPECT_EQ(sums.at("select experts").written, pairs * 8);
}

TEST(SystemStream, ACapacityIsRowsOfEveryExpert) {
  const SystemShape shape = bf16_shape(System::kGShard, 300, 8, 2);
  Routing routing = spread(shape, 2);
  auto sums =
      sums_of(system_stream(shape, routing, ScheduleKind::kExpertCentric, on_large_gpu(), false, 150));
  EXPECT_EQ(sums.at("grouped gated product").written, 8 * 150 * 24 * 2);
  EXPECT_EQ(sums.at("grouped gated product").tensor_flop, 2.0 * 8 * (128 + 64) * 256 * 64);
  EXPECT_EQ(sums.at("sums by token").read, 600 * (128 + 8));  // of the pairs alone
}

TEST(SystemStream, ASharedExpertComesBeforeAndIsAdded) {
  const SystemShape shape = bf16_shape(System::kDeepSeekMoe, 130, 8, 2);
  const Routing routing = spread(shape, 2);
  const auto launches = system_stream(shape, routing, ScheduleKind::kExpertCentric, on_large_gpu(), true);
  EXPECT_EQ(stages_of(launches), (std::vector<Stage>{Stage::kSchedule, Stage::kSharedMlp, Stage::kExperts}));
  auto sums = sums_of(launches);
  EXPECT_EQ(sums.at("gated product").written, 130 * 40 * 2);
  EXPECT_EQ(sums.at("gated product").read, 2 * 2 * 40 * 128 + 130 * 128);
  EXPECT_EQ(sums.at("down").written, 130 * 64 * 4);
  EXPECT_EQ(sums.at("sums by token").read, 260 * (128 + 8) + 130 * 64 * 4);
  for (const KernelLaunch& launch : launches) {
    EXPECT_EQ(launch.overlap == Overlap::kNone, launch.stage == Stage::kExperts) << launch.name;
  }
}

TEST(SystemStream, ADenseMlpIsTwoProducts) {
  const SystemShape shape = bf16_shape(System::kDenseMlp, 130, 0, 0);
  const auto launches = system_stream(shape, spread(shape, 1), ScheduleKind::kDenseMasked, on_large_gpu());
  EXPECT_EQ(stages_of(launches), std::vector<Stage>{Stage::kSharedMlp});
  EXPECT_EQ(sums_of(launches).at("down").written, 130 * 64 * 2);  // rounded at once
}

TEST(SystemStream, ProductKeysScoreEveryHalfOfEveryHead) {
  const SystemShape shape = bf16_shape(System::kPeer, 50, 64, 6, 3);  // 8 x 8 keys, 2 experts a head
  const Routing routing = spread(shape, 5);
  const auto launches = system_stream(shape, routing, ScheduleKind::kTokenCentric, on_large_gpu());
  EXPECT_EQ(stages_of(launches), system_stages(System::kPeer));
  auto sums = sums_of(launches);
  EXPECT_EQ(sums.at("queries").written, 50 * 6 * 16 * 2);
  const Sums& scores = sums.at("scores of keys");
  EXPECT_EQ(scores.launches, 1);
  EXPECT_EQ(scores.written, 50 * 6 * 8 * 4);
  EXPECT_EQ(static_cast<std::int64_t>(scores.written_sectors.size()) * 32, scores.written);  // apart
  EXPECT_EQ(sums.at("select queries").read, 150 * 16 * 4);
  EXPECT_EQ(sums.at("select queries").written, 300 * 8);
  const Sums& pairs = sums.at(kTokenPairs);
  EXPECT_EQ(pairs.cuda_core_flop, 4.0 * 300 * 64);
  EXPECT_FALSE(sums.contains("layer norm"));
  const SystemShape pkm = bf16_shape(System::kPkm, 50, 64, 6, 3);
  const auto values = system_stream(pkm, routing, ScheduleKind::kTokenCentric, on_large_gpu());
  EXPECT_EQ(stages_of(values), system_stages(System::kPkm));
  sums = sums_of(values);
  EXPECT_EQ(sums.at("layer norm").read, 50 * 6 * 16 * 4);
  EXPECT_EQ(sums.at("sums by token").cuda_core_flop, 2.0 * 300 * 64);
  EXPECT_EQ(sums.at("sums by token").read, 300 * (128 + 8));
}

TEST(SystemStream, TheMaskedFormWritesAllGatesAndSumsItsParts) {
  const SystemShape shape = bf16_shape(System::kPeer, 50, 4096, 6, 3);
  const Routing routing = spread(shape, 1000);
  auto sums = sums_of(system_stream(shape, routing, ScheduleKind::kDenseMasked, on_large_gpu()));
  const Sums& mask = sums.at("mask of heads");
  EXPECT_EQ(mask.written, 50 * 4096 * 2);
  EXPECT_EQ(mask.read, 300 * 12);  // id, gate, score
  EXPECT_EQ(sums.at("scores of all").written, 50 * 4096 * 4);
  const Sums& combine = sums.at("combine parts");
  const std::int64_t parts = combine.written / (50 * 64 * 4);
  EXPECT_GT(parts, 1);
  EXPECT_EQ(sums.at("sum parts").read, combine.written);
  EXPECT_EQ(sums.at("sum parts").written, 50 * 64 * 2);
  // All of V once, and all of P.
  EXPECT_NEAR(static_cast<double>(combine.read_sectors.size()) * 32, 4096.0 * 128 + 50.0 * 4096 * 2, 1024);
  EXPECT_FALSE(sums_of(system_stream(bf16_shape(System::kPkm, 50, 4096, 6, 3), routing,
                                     ScheduleKind::kDenseMasked, on_large_gpu()))
                   .contains("scores of all"));
}

TEST(SystemStream, OutlivesItsRouting) {
  const SystemShape shape = bf16_shape(System::kPeer, 20, 64, 6, 3);
  std::vector<KernelLaunch> launches;
  {
    const Routing routing = spread(shape, 5);
    launches = system_stream(shape, routing, ScheduleKind::kTokenCentric, on_large_gpu());
  }
  EXPECT_EQ(sums_of(launches).at("select queries").written, 120 * 8);
}

TEST(SystemStream, RefusesWhatTheKernelsDoNotHave) {
  const auto refusal = [](const SystemShape& shape, ScheduleKind kind) {
    return test::error_text<InvalidArgument>(
        [&] { (void)system_stream(shape, spread(shape, 2), kind, on_large_gpu()); });
  };
  const SystemShape gshard = bf16_shape(System::kGShard, 30, 8, 2);
  EXPECT_EQ(refusal(gshard, ScheduleKind::kTokenCentric),
            "schedule = token_centric: has no access stream: GPU kernels run FFN experts as expert_centric");
  EXPECT_EQ(refusal(bf16_shape(System::kPeer, 30, 64, 6, 3), ScheduleKind::kExpertCentric),
            "schedule = expert_centric: is none of peer");
  SystemShape wide = gshard;
  wide.dtype = Dtype::kF32;
  EXPECT_EQ(refusal(wide, ScheduleKind::kExpertCentric),
            "dtype = fp32: has no access stream: grouped products are modelled in bf16");
  SystemShape odd = gshard;
  odd.expert_size = 23;
  EXPECT_EQ(refusal(odd, ScheduleKind::kExpertCentric),
            "expert_size = 23: the CUDA kernels need a multiple of 8");
  SystemShape longer = gshard;
  longer.num_tokens = 31;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] {
              (void)system_stream(longer, spread(gshard, 2), ScheduleKind::kExpertCentric, on_large_gpu());
            }),
            "routing = 30 rows, grid 1 x 8: must have 31 rows, grid 1 x 8");
}

}  // namespace
}  // namespace moescope
