#include <algorithm>

#include "core/tiling/token_split.hpp"
#include "profiler/simulator/streams/access_backward.hpp"

namespace moescope::detail {
namespace {

/// As compiled for sm_90a: dgrad_kernel of bf16, select_backward_kernel.
constexpr std::int64_t kDgradCodeBytes = 27'520;
constexpr std::int64_t kSelectBackwardCodeBytes = 12'288;

/// A token's part in a block of dgrad_kernel.
class DgradTokens {
 public:
  DgradTokens(const BackwardContext& context, const TokenSplit& split, std::int64_t index)
      : context_(context),
        split_(split),
        first_(index / blocks_of_token() * split.tokens_per_block()),
        end_(std::min(first_ + split.tokens_per_block(), context.shape.num_tokens)),
        block_(index % blocks_of_token()) {}

  void fill(WorkUnit& unit) const {
    unit.clear();
    begin(unit);
    const std::int64_t pairs = gather(unit);
    finish(unit);
    charge(unit, pairs);
  }

 private:
  std::int64_t blocks_of_token() const { return split_.cluster_blocks * split_.clusters; }
  std::uint64_t pair_bytes(std::int64_t token) const {
    return static_cast<std::uint64_t>(context_.routing->token_offsets[token] * 4);
  }
  std::int64_t pairs_of(std::int64_t token) const {
    return static_cast<std::int64_t>(context_.routing->ids_of(token).size());
  }
  std::int64_t steps() const {
    std::int64_t most = 0;
    for (std::int64_t token = first_; token < end_; ++token) {
      most = std::max(most, ceil_div(pairs_of(token), split_.splits()));
    }
    return most;
  }

  void begin(WorkUnit& unit) const {
    const auto read = [&](std::uint64_t address, std::int64_t bytes) {
      unit.bursts.push_back(burst(address, bytes, AccessKind::kReadCached));
    };
    for (std::int64_t token = first_; token < end_; ++token) {
      const std::int64_t bytes = pairs_of(token) * 4;
      read(context_.map.expert_ids + pair_bytes(token), bytes);
      read(context_.map.gates + pair_bytes(token), bytes);
      if (context_.saves_scores()) {
        read(context_.at.z + pair_bytes(token), bytes);
      }
      // X is read by the kernel also where scores are saved.
      read(context_.x_row(token), context_.row_bytes);
      read(offset_by(context_.at.dy, token * context_.row_bytes), context_.row_bytes);
    }
  }

  /// Workers go through their pairs side by side: worker s takes pairs s, s + splits, ... Pairs that were
  /// read.
  std::int64_t gather(WorkUnit& unit) const {
    std::int64_t done = 0;
    const std::int64_t all = steps();
    for (std::int64_t step = 0; step < all; ++step) {
      for (std::int64_t token = first_; token < end_; ++token) {
        const auto ids = context_.routing->ids_of(token);
        for (std::int64_t worker = 0; worker < split_.block_splits; ++worker) {
          const std::int64_t k = step * split_.splits() + block_ * split_.block_splits + worker;
          if (k >= static_cast<std::int64_t>(ids.size())) {
            continue;
          }
          ++done;
          for (const std::uint64_t row : {context_.w_row(ids[k]), context_.v_row(ids[k])}) {
            unit.bursts.push_back(burst(row, context_.row_bytes, AccessKind::kReadCached));
          }
        }
      }
    }
    return done;
  }

  /// The block's part of what it leaves: gates' gradients, p, q of its pairs; dX, whose columns a token's
  /// blocks share.
  void finish(WorkUnit& unit) const {
    const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
      if (bytes > 0) {
        unit.bursts.push_back(burst(address, bytes, kind));
      }
    };
    for (std::int64_t token = first_; token < end_; ++token) {
      const std::int64_t part = ceil_div(pairs_of(token), blocks_of_token());
      const std::int64_t from = std::min(block_ * part, pairs_of(token));
      const std::int64_t to = std::min(from + part, pairs_of(token));
      for (const std::uint64_t array : {context_.at.gate_gradients, context_.at.p, context_.at.q}) {
        add(array + pair_bytes(token) + static_cast<std::uint64_t>(from * 4), (to - from) * 4,
            AccessKind::kWrite);
      }
      const std::int64_t columns = context_.shape.hidden_size / blocks_of_token();
      const std::uint64_t sums =
          offset_by(context_.at.dx_sums, (token * context_.shape.hidden_size + block_ * columns) * 4);
      if (context_.dx_holds()) {
        add(sums, columns * 4, AccessKind::kReadCached);
      }
      add(sums, columns * 4, AccessKind::kWrite);
      if (split_.splits() == 1) {  // a lane's eight values in two stores: every sector is stored to twice
        add(sums, columns * 4, AccessKind::kWrite);
      }
    }
  }

  void charge(WorkUnit& unit, std::int64_t pairs) const {
    // Ids, x and gates, then one trip per pair of a worker, its rows being asked for one pair ahead.
    unit.dependent_steps = 2 + static_cast<double>(steps());
    const auto loads = static_cast<double>(split_.chunks * split_.team);
    const StreamConstants& c = context_.constants();
    const double products = context_.saves_scores() ? 1 : 2;
    // Of a pair twice what the forward has beside its loads: two sums over lanes, a slope, three results.
    unit.instructions =
        static_cast<double>(pairs) *
        (2 * c.pair_instructions * static_cast<double>(split_.team) +
         loads * (products * c.pair_instructions_per_score_load + c.pair_instructions_per_sum_load));
    unit.cuda_core_flop = 2.0 * static_cast<double>(pairs * context_.shape.hidden_size) * (products + 1);
  }

  const BackwardContext& context_;
  const TokenSplit& split_;
  std::int64_t first_;
  std::int64_t end_;
  std::int64_t block_;
};

}  // namespace

void add_pairs_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const bool clusters = context.options.gpu.has_clusters();
  const TokenSplit split = TokenSplit::choose(
      context.options.gpu, context.shape.num_tokens, context.shape.top_k, context.row_bytes,
      clusters ? TokenSplit::kMaxClusterBlocks : 1, clusters ? TokenSplit::kMaxClusters : 1);
  // A token that has a cluster to itself: L2 is asked ahead, by one block of a multiprocessor.
  const bool ahead = split.cluster_blocks > 1 && split.is_full(context.row_bytes);
  const std::int64_t blocks_per_sm = (ahead ? 1 : 2) * TokenSplit::kWarpsPerBlock / split.warps;
  launches.push_back({Stage::kExpertsDgrad, "dgrad by token", split.num_blocks, blocks_per_sm,
                      [context, split](std::int64_t index, WorkUnit& unit) {
                        DgradTokens(context, split, index).fill(unit);
                      },
                      kDgradCodeBytes});
  launches.back().dependent = true;
}

void add_lists_select_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  constexpr std::int64_t kSharedBytes = std::int64_t{48} << 10;
  constexpr std::int64_t kMaxWarps = 8;
  constexpr std::int64_t kThreadsPerSm = 2048;
  const std::int64_t tokens = context.shape.num_tokens;
  const std::int64_t row = context.sides() * 4;
  const std::int64_t by_tokens = ceil_div(tokens, 2 * context.options.gpu.num_sms);
  const auto warps = std::clamp<std::int64_t>(std::min(kSharedBytes / row, by_tokens), 1, kMaxWarps);
  const auto blocks_per_sm = std::min<std::int64_t>(
      {32, kThreadsPerSm / (32 * warps),
       std::max<std::int64_t>(context.options.gpu.shared_bytes_per_block / (warps * row), 1)});
  launches.push_back({Stage::kRouterSelectBackward, "logits by token", ceil_div(tokens, warps), blocks_per_sm,
                      [context, warps, row](std::int64_t index, WorkUnit& unit) {
                        unit.clear();
                        const Routing& routing = *context.routing;
                        const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
                          unit.bursts.push_back(burst(address, bytes, kind));
                        };
                        std::int64_t batches = 0;
                        std::int64_t longest = 0;
                        const std::int64_t end = std::min((index + 1) * warps, context.shape.num_tokens);
                        for (std::int64_t token = index * warps; token < end; ++token) {
                          const auto pairs = static_cast<std::int64_t>(routing.ids_of(token).size());
                          const std::int64_t first = routing.token_offsets[token] * 4;
                          for (int again = 0; again < 2; ++again) {  // for the sum of all, then pair by pair
                            add(offset_by(context.map.gates, first), pairs * 4, AccessKind::kReadCached);
                            add(offset_by(context.at.gate_gradients, first), pairs * 4,
                                AccessKind::kReadCached);
                          }
                          add(offset_by(context.map.expert_ids, first), pairs * 4, AccessKind::kReadCached);
                          if (context.reads_log_probs()) {
                            add(offset_by(context.at.log_probs, token * row), row, AccessKind::kReadCached);
                          }
                          add(offset_by(context.at.logits_gradient, token * row), row, AccessKind::kWrite);
                          batches += ceil_div(pairs, 32);
                          longest = std::max(longest, ceil_div(pairs, 32));
                        }
                        // Of 32 pairs one warp adds rows and columns in order, and waits for itself
                        // meanwhile.
                        unit.instructions =
                            250 * static_cast<double>(batches) + static_cast<double>(end - index * warps) *
                                                                     static_cast<double>(context.sides()) / 4;
                        unit.chain_steps = 35 + 2.25 * static_cast<double>(longest);
                        unit.dependent_steps = 4;
                      },
                      kSelectBackwardCodeBytes});
}

}  // namespace moescope::detail
