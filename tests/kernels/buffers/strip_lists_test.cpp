// Strips in core's form against plain loops on the host (tests/support/host_strips.hpp); no GPU needed.
#include "kernels/buffers/strip_lists.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "core/base/error.hpp"
#include "reference/oracle/stage_compare.hpp"
#include "tests/support/gpus.hpp"
#include "tests/support/host_strips.hpp"
#include "tests/support/router_logits.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::make_shape;

struct StripsCase {
  LayerShape shape;
  ScheduleOptions options;
  test::HostStrips plain;
  cuda::HostStrips strips;  ///< the same as they lie on the device, tokens of a strip in no order
};

StripsCase make_case(LayerShape shape, const char* schedule, GateMode gates, double step) {
  shape.gate_mode = gates;
  StripsCase c;
  c.shape = shape;
  c.options = parse_schedule(schedule);
  const std::vector<float> joined =
      step > 0 ? test::coarse_logits(shape, 3, step) : test::normal_logits(shape, 3, 1);
  std::vector<float> row;
  std::vector<float> col;
  const std::int64_t width = shape.grid_rows + shape.grid_cols;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto first = joined.begin() + token * width;
    row.insert(row.end(), first, first + shape.grid_rows);
    col.insert(col.end(), first + shape.grid_rows, first + width);
  }
  c.plain = test::make_host_strips(shape, row, col, c.options.strip_rule, 32);
  c.strips.row_log_probs = c.plain.row_log_probs;
  c.strips.col_log_probs = c.plain.col_log_probs;
  c.strips.uncovered_rows = c.plain.uncovered_rows;
  c.strips.threshold = c.plain.threshold;
  c.strips.tie_limit = c.plain.tie_limit;
  c.strips.gate_shift = c.plain.gate_shift;
  c.strips.cover_sizes = c.plain.cover_sizes;
  c.strips.max_cover = cuda::strip_capacity(shape, c.options.strip_rule, 32, test::large_gpu()).max_cover;
  for (std::vector<std::int32_t> cover : c.plain.covers) {
    cover.resize(static_cast<std::size_t>(c.strips.max_cover), -7);  // unused places hold anything
    c.strips.cover.insert(c.strips.cover.end(), cover.begin(), cover.end());
  }
  c.strips.strip_offsets = c.plain.strip_offsets;
  c.strips.strip_tokens = c.plain.strip_tokens;
  for (std::size_t strip = 0; strip + 1 < c.strips.strip_offsets.size(); ++strip) {
    std::reverse(c.strips.strip_tokens.begin() + c.strips.strip_offsets[strip],
                 c.strips.strip_tokens.begin() + c.strips.strip_offsets[strip + 1]);
  }
  c.strips.tiles = c.plain.tiles;
  return c;
}

/// Strip and place in it name the pair's expert.
void expect_places(const StripsCase& c, const Routing& routing) {
  const std::vector<cuda::PairPlace> places = cuda::places_of(c.shape, c.strips);
  ASSERT_EQ(std::ssize(places), routing.num_pairs());
  for (std::int64_t token = 0; token < c.shape.num_tokens; ++token) {
    for (auto pair = routing.token_offsets[token]; pair < routing.token_offsets[token + 1]; ++pair) {
      const cuda::PairPlace at = places[pair];
      const std::int64_t strip = c.plain.covers[token].at(at.cover);
      const std::int64_t row = strip < c.shape.grid_rows ? strip : at.place;
      const std::int64_t col = strip < c.shape.grid_rows ? at.place : strip - c.shape.grid_rows;
      ASSERT_EQ(routing.expert_ids[pair], row * c.shape.grid_cols + col);
    }
  }
}

TEST(StripLists, AreTheRoutingAndScheduleOfPlainLoops) {
  for (const LayerShape& shape : {make_shape(1, 8, 4, 4, 1), make_shape(70, 8, 24, 40, 33),
                                  make_shape(33, 8, 7, 11, 77), make_shape(20, 8, 64, 3, 100)}) {
    for (const char* schedule : {"staircase", "staircase:rows"}) {
      for (const GateMode gates : {GateMode::kSoftmax, GateMode::kProbability}) {
        for (const double step : {0.0, 0.5}) {  // continuous; many ties
          SCOPED_TRACE(shape.label() + " " + schedule);
          const StripsCase c = make_case(shape, schedule, gates, step);
          const Routing routing = cuda::routing_of(c.shape, c.strips);
          ASSERT_NO_THROW(routing.validate());
          EXPECT_EQ(routing.token_offsets, c.plain.routing.token_offsets);
          EXPECT_EQ(routing.expert_ids, c.plain.routing.expert_ids);
          for (std::size_t i = 0; i < routing.gates.size(); ++i) {
            ASSERT_NEAR(routing.gates[i], c.plain.routing.gates[i], 4e-6F * c.plain.routing.gates[i]);
          }
          expect_places(c, routing);
          const Schedule ours = cuda::schedule_of(c.shape, c.options, c.strips, routing);
          ASSERT_NO_THROW(validate(ours, routing));
          EXPECT_EQ(compare_schedules(ours, build_schedule(routing, c.options)), "");
        }
      }
    }
  }
}

TEST(StripLists, ShowWhatIsWrongWithStrips) {
  const StripsCase right = make_case(make_shape(70, 8, 24, 40, 33), "staircase", GateMode::kSoftmax, 0);
  const std::int64_t pairs = right.plain.routing.num_pairs();

  StripsCase uncovered = right;  // a row's pairs in its columns' strips too
  uncovered.strips.uncovered_rows = uncovered.strips.row_log_probs;
  EXPECT_THROW(cuda::routing_of(right.shape, uncovered.strips).validate(), InvalidArgument);

  StripsCase short_cover = right;
  --short_cover.strips.cover_sizes[3];
  EXPECT_LT(cuda::routing_of(right.shape, short_cover.strips).num_pairs(), pairs);

  const Routing routing = cuda::routing_of(right.shape, right.strips);
  const auto schedule_with = [&](const cuda::HostStrips& strips) {
    validate(cuda::schedule_of(right.shape, right.options, strips, routing), routing);
  };
  EXPECT_NO_THROW(schedule_with(right.strips));
  StripsCase lost_token = right;  // one token twice, another not at all
  const auto strip = std::ranges::adjacent_find(lost_token.strips.strip_offsets,
                                                [](std::int32_t a, std::int32_t b) { return b - a > 1; });
  ASSERT_NE(strip, lost_token.strips.strip_offsets.end());
  lost_token.strips.strip_tokens[static_cast<std::size_t>(*strip)] =
      lost_token.strips.strip_tokens[static_cast<std::size_t>(*strip) + 1];
  EXPECT_THROW(schedule_with(lost_token.strips), InternalError);
  StripsCase no_token = right;
  no_token.strips.strip_tokens[5] = 70;
  EXPECT_THROW(schedule_with(no_token.strips), InternalError);
  StripsCase no_strip = right;
  no_strip.strips.cover[0] = 24 + 40;
  EXPECT_THROW((void)cuda::routing_of(right.shape, no_strip.strips), InternalError);
  StripsCase lost_tile = right;
  lost_tile.strips.tiles.pop_back();
  EXPECT_THROW(schedule_with(lost_tile.strips), InternalError);
}

}  // namespace
}  // namespace moescope
