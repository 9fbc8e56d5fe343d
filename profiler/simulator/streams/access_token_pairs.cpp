#include <algorithm>

#include "core/tiling/token_split.hpp"
#include "profiler/simulator/streams/access_builder.hpp"

namespace moescope::detail {
namespace {

/// token_pairs_kernel as compiled for sm_90a, bf16 rows in four chunks; others are up to 30 % smaller.
constexpr std::int64_t kPairCodeBytes = 27'136;
constexpr std::int64_t kPairScoreCodeBytes = 8'064;

}  // namespace

void add_token_pairs(std::vector<KernelLaunch>& launches, Stage stage, bool score, bool sum,
                     const StreamContext& context, bool finishes) {
  const bool clusters = context.options.gpu.has_clusters();
  const TokenSplit split = TokenSplit::choose(
      context.options.gpu, context.shape.num_tokens, context.shape.top_k, context.row_bytes,
      clusters ? TokenSplit::kMaxClusterBlocks : 1, clusters && score && sum ? TokenSplit::kMaxClusters : 1);
  const std::int64_t blocks_of_token = split.cluster_blocks * split.clusters;
  const auto fill = [context, split, blocks_of_token, score, sum, finishes](std::int64_t index,
                                                                            WorkUnit& unit) {
    unit.clear();
    const Routing& routing = *context.routing;
    const std::int64_t first = index / blocks_of_token * split.tokens_per_block();
    const std::int64_t end = std::min(first + split.tokens_per_block(), context.shape.num_tokens);
    const std::int64_t block_of_token = index % blocks_of_token;
    std::int64_t steps = 0;
    for (std::int64_t token = first; token < end; ++token) {
      const auto pairs = static_cast<std::int64_t>(routing.ids_of(token).size());
      const auto offset = static_cast<std::uint64_t>(routing.token_offsets[token] * 4);
      unit.bursts.push_back(burst(context.map.expert_ids + offset, pairs * 4, AccessKind::kReadCached));
      unit.bursts.push_back(burst((score ? context.map.gates : context.map.scratch) + offset, pairs * 4,
                                  AccessKind::kReadCached));
      if (score) {
        unit.bursts.push_back(burst(context.x_row(token), context.row_bytes, AccessKind::kReadCached));
      }
      steps = std::max(steps, ceil_div(pairs, split.splits()));
    }
    // Workers go through their pairs side by side: worker s takes pairs s, s + splits, ...
    std::int64_t done = 0;
    for (std::int64_t step = 0; step < steps; ++step) {
      for (std::int64_t token = first; token < end; ++token) {
        const auto ids = routing.ids_of(token);
        for (std::int64_t worker = 0; worker < split.block_splits; ++worker) {
          const std::int64_t k = step * split.splits() + block_of_token * split.block_splits + worker;
          if (k >= static_cast<std::int64_t>(ids.size())) {
            continue;
          }
          ++done;
          if (score) {
            unit.bursts.push_back(burst(context.w_row(ids[k]), context.row_bytes, AccessKind::kReadCached));
          }
          if (sum) {
            unit.bursts.push_back(burst(context.v_row(ids[k]), context.row_bytes, AccessKind::kReadCached));
          }
        }
      }
    }
    // Ids, x and gates, then one trip per pair of a worker, its rows being asked for one pair ahead.
    unit.dependent_steps = 2 + static_cast<double>(steps);
    const auto loads = static_cast<double>(split.chunks * split.team);
    const StreamConstants& c = context.constants();
    unit.instructions =
        static_cast<double>(done) * (c.pair_instructions * static_cast<double>(split.team) +
                                     loads * ((score ? c.pair_instructions_per_score_load : 0) +
                                              (sum ? c.pair_instructions_per_sum_load : 0)));
    unit.cuda_core_flop = 2.0 * static_cast<double>(done * context.shape.hidden_size) *
                          ((score ? 1.0 : 0.0) + (sum ? 1.0 : 0.0));
    for (std::int64_t token = first; token < end; ++token) {
      if (sum) {  // a token's blocks share the columns
        const std::int64_t columns = context.shape.hidden_size / blocks_of_token;
        const std::int64_t at = token * context.shape.hidden_size + block_of_token * columns;
        const auto add = [&](std::uint64_t tensor, std::int64_t bytes, AccessKind kind) {
          unit.bursts.push_back(
              burst(tensor + static_cast<std::uint64_t>(at * bytes), columns * bytes, kind));
        };
        if (finishes && context.shape.shared_size > 0) {
          add(context.map.shared_result, 4, AccessKind::kReadCached);
        }
        const bool rounds = finishes && context.shape.dtype == Dtype::kBF16;
        add(rounds ? context.map.output : context.map.working, rounds ? 2 : 4, AccessKind::kWrite);
        if (rounds) {  // in stores of 8 bytes, 16 bytes apart: every sector is stored to twice
          add(context.map.output, 2, AccessKind::kWrite);
        }
      } else {
        const auto pairs = static_cast<std::int64_t>(routing.ids_of(token).size());
        unit.bursts.push_back(
            burst(context.map.scratch + static_cast<std::uint64_t>(routing.token_offsets[token] * 4),
                  pairs * 4, AccessKind::kWrite));
      }
    }
  };
  const std::string name = score && sum ? kTokenPairs : score ? "scores by token" : "sums by token";
  // Launch bounds of the kernel: two blocks of eight warps.
  launches.push_back({stage, name, split.num_blocks, 2 * TokenSplit::kWarpsPerBlock / split.warps, fill,
                      score && !sum ? kPairScoreCodeBytes : kPairCodeBytes});
  launches.back().overlap = finishes ? Overlap::kNone : Overlap::kSharedMlp;
  launches.back().dependent = true;
}

}  // namespace moescope::detail
