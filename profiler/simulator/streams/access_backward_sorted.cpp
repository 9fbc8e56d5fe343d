#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <utility>

#include "profiler/simulator/streams/access_backward.hpp"

namespace moescope::detail {
namespace {

/// As compiled for sm_90a: wgrad_kernel of bf16, those of pairs_by_expert.cu and CUB's.
constexpr std::int64_t kWgradCodeBytes = 7'680;
constexpr std::int64_t kListPairsCodeBytes = 3'712;
constexpr std::int64_t kHistogramCodeBytes = 8'576;
constexpr std::int64_t kSortCodeBytes = 51'456;
constexpr std::int64_t kOffsetsCodeBytes = 3'328;
constexpr std::int64_t kTouchedCodeBytes = 54'912;

/// Bits of a key that a pass of the radix sort takes.
constexpr std::int64_t kDigitBits = 8;

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
  std::array<std::int64_t, kWgradWarps> steps = {};
  for (std::int64_t turn = 0; turn < kWgradExperts; ++turn) {
    for (std::int64_t warp = 0; warp < kWgradWarps; ++warp) {
      const std::int64_t expert = first + warp * kWgradExperts + turn;
      if (expert >= first + experts) {
        continue;
      }
      const auto begin = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert)]);
      const auto end = static_cast<std::size_t>(sorted.offsets[static_cast<std::size_t>(expert) + 1]);
      const auto count = static_cast<std::int64_t>(end - begin);
      // Pairs, their scales, then pieces of rows so many at a time.
      steps[static_cast<std::size_t>(warp)] += 2 * ceil_div(count, 32) + ceil_div(count, kWgradPiecesAhead);
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
  }
  unit.dependent_steps = 1 + static_cast<double>(*std::ranges::max_element(steps));
  const auto pairs = static_cast<double>(sorted.offsets[static_cast<std::size_t>(first + experts)] -
                                         sorted.offsets[static_cast<std::size_t>(first)]);
  // Of a pair: 8 multiply-adds and as many shifts and masks, two exchanges, an address and a load; of an
  // expert: packing and storing (from the source).
  unit.instructions = 30 * pairs + 40 * static_cast<double>(experts);
  const std::int64_t columns = piece / context.element_bytes;
  unit.cuda_core_flop = 2 * pairs * static_cast<double>(columns);
}

/// pairs_by_expert.cu: a stable radix sort of (expert, pair) by CUB, offsets by binary search.
void add_sort(std::vector<KernelLaunch>& launches, const BackwardContext& context) {
  constexpr AccessKind kRead = AccessKind::kRead;
  constexpr AccessKind kWrite = AccessKind::kWrite;
  const std::int64_t pairs = context.routing->num_pairs();
  const std::int64_t bytes = pairs * 4;
  const std::array<std::uint64_t, 2> keys = {context.at.scratch, offset_by(context.at.scratch, bytes)};
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
         {{keys.at(static_cast<std::size_t>(i % 2)), bytes, kRead},
          {from, bytes, kRead},
          {keys.at(static_cast<std::size_t>((i + 1) % 2)), bytes, kWrite},
          {to, bytes, kWrite}},
         kSortCodeBytes, context.constants().sort_issue_per_pair);
    std::swap(from, to);
  }
  const std::int64_t offsets = (context.shape.num_experts() + 1) * 4;
  pass("offsets of experts",
       {{keys.at(static_cast<std::size_t>(passes % 2)), bytes, kRead},
        {context.at.sorted_offsets, offsets, kWrite}},
       kOffsetsCodeBytes);
  add_touched(launches, context, context.at.sorted_offsets);
  for (std::size_t i = begin; i < launches.size(); ++i) {
    launches[i].overlap = Overlap::kDgrad;
  }
}

}  // namespace

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

}  // namespace moescope::detail
