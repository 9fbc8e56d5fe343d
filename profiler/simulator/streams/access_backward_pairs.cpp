#include <algorithm>
#include <bit>

#include "core/tiling/token_split.hpp"
#include "profiler/simulator/streams/access_backward.hpp"

namespace moescope::detail {
namespace {

/// As compiled for sm_90a: dgrad_kernel and wgrad_kernel of bf16, select_backward_kernel, those of
/// pairs_by_expert.cu and CUB's.
constexpr std::int64_t kDgradCodeBytes = 27'136;
constexpr std::int64_t kWgradCodeBytes = 8'192;
constexpr std::int64_t kSelectBackwardCodeBytes = 4'096;
constexpr std::int64_t kListPairsCodeBytes = 2'048;
constexpr std::int64_t kHistogramCodeBytes = 11'136;
constexpr std::int64_t kSortCodeBytes = 40'960;
constexpr std::int64_t kOffsetsCodeBytes = 3'072;
constexpr std::int64_t kTouchedCodeBytes = 20'480;

/// Bits of a key that a pass of the radix sort takes.
constexpr std::int64_t kDigitBits = 8;

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

/// experts_wgrad.cu: a warp owns 512 bytes of X's or dY's columns for 16 experts, one after the other.
constexpr std::int64_t kWgradWarps = 8;
constexpr std::int64_t kWgradExperts = 16;
constexpr std::int64_t kWgradPieceBytes = 512;
constexpr std::int64_t kWgradPiecesAhead = 4;

/// Pairs by expert: CSR over experts, tokens ascending.
struct PairsByExpert {
  std::vector<std::int64_t> offsets;
  std::vector<std::int32_t> pairs;
  std::vector<std::int32_t> tokens;

  explicit PairsByExpert(const Routing& routing, std::int64_t num_experts)
      : offsets(static_cast<std::size_t>(num_experts) + 1, 0),
        pairs(routing.expert_ids.size()),
        tokens(routing.expert_ids.size()) {
    for (const std::int32_t id : routing.expert_ids) {
      ++offsets[static_cast<std::size_t>(id) + 1];
    }
    for (std::size_t e = 1; e < offsets.size(); ++e) {
      offsets[e] += offsets[e - 1];
    }
    std::vector<std::int64_t> next(offsets.begin(), offsets.end() - 1);
    for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
      for (auto pair = routing.token_offsets[token]; pair < routing.token_offsets[token + 1]; ++pair) {
        const auto id = static_cast<std::size_t>(routing.expert_ids[static_cast<std::size_t>(pair)]);
        const auto at = static_cast<std::size_t>(next[id]++);
        pairs[at] = static_cast<std::int32_t>(pair);
        tokens[at] = static_cast<std::int32_t>(token);
      }
    }
  }
};

void fill_wgrad(const BackwardContext& context, const PairsByExpert& sorted, std::int64_t slices,
                std::int64_t index, WorkUnit& unit) {
  unit.clear();
  const std::int64_t slice = index % (2 * slices);
  const std::int64_t first = index / (2 * slices) * kWgradWarps * kWgradExperts;
  const bool is_w_in = slice < slices;
  const std::int64_t column = (is_w_in ? slice : slice - slices) * kWgradPieceBytes;
  const std::int64_t piece = std::min(kWgradPieceBytes, context.row_bytes - column);
  const std::uint64_t source = is_w_in ? context.map.x : context.at.dy;
  const std::uint64_t scales = is_w_in ? context.at.q : context.at.p;
  const std::uint64_t target = is_w_in ? context.at.w_in_gradient : context.at.w_out_gradient;
  const std::int64_t out_column = column / context.element_bytes * context.gradient_bytes();
  const std::int64_t out_bytes = piece / context.element_bytes * context.gradient_bytes();
  const auto add = [&](std::uint64_t address, std::int64_t bytes, AccessKind kind) {
    unit.bursts.push_back(burst(address, bytes, kind));
  };
  const std::int64_t experts = std::min(kWgradWarps * kWgradExperts, context.shape.num_experts() - first);
  add(offset_by(context.at.sorted_offsets, first * 4), (experts + 1) * 4, AccessKind::kReadCached);
  std::int64_t steps = 0;  // of the warp with most
  for (std::int64_t turn = 0; turn < kWgradExperts; ++turn) {
    std::int64_t longest = 0;
    for (std::int64_t warp = 0; warp < kWgradWarps; ++warp) {
      const std::int64_t expert = first + warp * kWgradExperts + turn;
      if (expert >= first + experts) {
        continue;
      }
      const auto begin = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert)]);
      const auto end = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert) + 1]);
      longest = std::max(longest, static_cast<std::int64_t>(end - begin));
      if (end > begin) {
        add(offset_by(context.at.sorted_pairs, static_cast<std::int64_t>(begin) * 4),
            static_cast<std::int64_t>(end - begin) * 4, AccessKind::kReadCached);
      }
      for (std::size_t i = begin; i < end; ++i) {
        add(offset_by(scales, std::int64_t{sorted.pairs[i]} * 4), 4, AccessKind::kReadCached);
        add(offset_by(source, std::int64_t{sorted.tokens[i]} * context.row_bytes + column), piece,
            AccessKind::kReadCached);
      }
      add(offset_by(target, expert * context.gradient_row_bytes() + out_column), out_bytes,
          AccessKind::kWrite);
    }
    // Pairs, their scales, then pieces of rows so many at a time.
    steps += 2 * ceil_div(longest, 32) + ceil_div(longest, kWgradPiecesAhead);
  }
  unit.dependent_steps = 1 + static_cast<double>(steps);
  const auto pairs = static_cast<double>(sorted.offsets[static_cast<std::size_t>(first + experts)] -
                                         sorted.offsets[static_cast<std::size_t>(first)]);
  // Of a pair: 8 multiply-adds and as many shifts and masks, two exchanges, an address and a load; of an
  // expert: packing and storing (from the source).
  unit.instructions = 30 * pairs + 40 * static_cast<double>(experts);
  unit.cuda_core_flop = 2 * pairs * static_cast<double>(piece / context.element_bytes);
}

/// pairs_by_expert.cu: a stable radix sort of (expert, pair) by CUB, offsets by binary search.
void add_sort(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  constexpr AccessKind kRead = AccessKind::kRead;
  constexpr AccessKind kWrite = AccessKind::kWrite;
  const std::int64_t pairs = context.routing->num_pairs();
  const std::int64_t bytes = pairs * 4;
  const std::uint64_t keys[2] = {context.at.scratch, offset_by(context.at.scratch, bytes)};
  const std::uint64_t other = offset_by(context.at.scratch, 2 * bytes);
  const auto most = static_cast<std::uint64_t>(std::max<std::int64_t>(context.shape.num_experts() - 1, 1));
  const std::int64_t passes = ceil_div(static_cast<std::int64_t>(std::bit_width(most)), kDigitBits);
  const std::size_t begin = launches.size();
  const auto pass = [&](const char* name, std::vector<PassPart> parts, std::int64_t code_bytes,
                        double issue_per_pair = 0) {
    add_pass(launches, Stage::kExpertsWgrad, name, std::move(parts),
             issue_per_pair * static_cast<double>(pairs), code_bytes);
  };
  // Begins where the last pass ends in the result.
  std::uint64_t from = passes % 2 == 0 ? context.at.sorted_pairs : other;
  std::uint64_t to = passes % 2 == 0 ? other : context.at.sorted_pairs;
  pass("list pairs",
       {{context.map.expert_ids, bytes, kRead}, {keys[0], bytes, kWrite}, {from, bytes, kWrite}},
       kListPairsCodeBytes);
  pass("clear counts", {}, 0);
  pass("count digits", {{keys[0], bytes, kRead}}, kHistogramCodeBytes);
  pass("rank digits", {}, 0);
  for (std::int64_t i = 0; i < passes; ++i) {
    pass("clear look-back", {}, 0);
    pass("sort pairs",
         {{keys[i % 2], bytes, kRead},
          {from, bytes, kRead},
          {keys[(i + 1) % 2], bytes, kWrite},
          {to, bytes, kWrite}},
         kSortCodeBytes, context.constants().sort_issue_per_pair);
    std::swap(from, to);
  }
  const std::int64_t offsets = (context.shape.num_experts() + 1) * 4;
  pass("offsets of experts", {{keys[passes % 2], bytes, kRead}, {context.at.sorted_offsets, offsets, kWrite}},
       kOffsetsCodeBytes);
  add_touched(launches, context, context.at.sorted_offsets);
  for (std::size_t i = begin; i < launches.size(); ++i) {
    launches[i].overlap = Overlap::kDgrad;
  }
}

}  // namespace

void add_pairs_dgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  const bool clusters = context.options.gpu.has_clusters();
  const TokenSplit split = TokenSplit::choose(
      context.options.gpu, context.shape.num_tokens, context.shape.top_k, context.row_bytes,
      clusters ? TokenSplit::kMaxClusterBlocks : 1, clusters ? TokenSplit::kMaxClusters : 1);
  // A token that has a cluster to itself: L2 is asked ahead, by one block of a multiprocessor.
  const bool ahead = split.cluster_blocks > 1 && split.is_full(context.row_bytes);
  const std::int64_t blocks_per_sm = (ahead ? 1 : 2) * TokenSplit::kWarpsPerBlock / split.warps_per_block();
  launches.push_back({Stage::kExpertsDgrad, "dgrad by token", split.num_blocks, blocks_per_sm,
                      [context, split](std::int64_t index, WorkUnit& unit) {
                        DgradTokens(context, split, index).fill(unit);
                      },
                      kDgradCodeBytes});
  launches.back().dependent = true;
}

void add_pairs_wgrad(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  add_sort(launches, context);
  const std::int64_t slices = ceil_div(context.row_bytes, kWgradPieceBytes);
  const std::int64_t blocks = 2 * slices * ceil_div(context.shape.num_experts(), kWgradWarps * kWgradExperts);
  constexpr std::int64_t kBlocksPerSm = 4;
  auto sorted = std::make_shared<const PairsByExpert>(*context.routing, context.shape.num_experts());
  launches.push_back({Stage::kExpertsWgrad, "wgrad by expert", blocks, kBlocksPerSm,
                      [context, slices, sorted](std::int64_t index, WorkUnit& unit) {
                        fill_wgrad(context, *sorted, slices, index, unit);
                      },
                      kWgradCodeBytes});
}

void add_touched(std::vector<KernelLaunch>& launches, const BackwardContext& context, std::uint64_t counts) {
  const std::int64_t bytes = context.shape.num_experts() * 4;
  add_pass(launches, Stage::kExpertsWgrad, "clear selection", {}, 0);
  add_pass(launches, Stage::kExpertsWgrad, "touched experts",
           {{counts, bytes, AccessKind::kRead}, {context.at.touched, bytes, AccessKind::kWrite}}, 0,
           kTouchedCodeBytes);
}

void add_lists_select_backward(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  constexpr std::int64_t kSharedBytes = std::int64_t{48} << 10;
  constexpr std::int64_t kMaxWarps = 8;
  constexpr std::int64_t kThreadsPerSm = 2048;
  const std::int64_t tokens = context.shape.num_tokens;
  const std::int64_t row = context.sides() * 4;
  const std::int64_t by_tokens = ceil_div(tokens, 2 * context.options.gpu.num_sms);
  const std::int64_t warps = std::clamp<std::int64_t>(std::min(kSharedBytes / row, by_tokens), 1, kMaxWarps);
  const std::int64_t blocks_per_sm = std::min<std::int64_t>(
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
                        unit.chain_steps = 15 + 2.4 * static_cast<double>(longest);
                        unit.dependent_steps = 4;
                      },
                      kSelectBackwardCodeBytes});
}

}  // namespace moescope::detail
