// Selection against brute force: all N sums in fp32, sorted; and what it refuses.
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/base/error.hpp"
#include "core/workload/philox.hpp"
#include "reference/stages/router_select.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

struct SelectCase {
  std::int64_t rows, cols, top_k;
  friend std::ostream& operator<<(std::ostream& out, const SelectCase& c) {
    return out << "N" << c.rows << "x" << c.cols << "_K" << c.top_k;
  }
};

const std::vector<SelectCase> kCases = {{1, 1, 1},     {1, 37, 5},      {37, 1, 5},  {1, 64, 64},
                                        {64, 1, 64},   {8, 8, 1},       {8, 8, 64},  {8, 8, 63},
                                        {48, 16, 64},  {16, 48, 64},    {48, 16, 7}, {33, 29, 300},
                                        {32, 32, 512}, {320, 320, 512}, {5, 200, 3}};

/// The documented order of additions, written again: 32 lanes, then pairwise.
float documented_sum(const std::vector<float>& values) {
  std::vector<float> lanes(32, 0.0F);
  for (std::size_t i = 0; i < values.size(); ++i) lanes[i % 32] += values[i];
  for (const std::size_t half : {16U, 8U, 4U, 2U, 1U}) {
    for (std::size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

std::vector<float> documented_log_softmax(std::span<const float> logits) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<float> exps;
  for (const float s : logits) exps.push_back(std::exp(s - max));
  const float log_sum = std::log(documented_sum(exps));
  std::vector<float> p;
  for (const float s : logits) p.push_back((s - max) - log_sum);
  return p;
}

struct Selection {
  std::vector<std::int32_t> ids;
  std::vector<float> gates;
};

Selection brute_force(std::span<const float> row_logits, std::span<const float> col_logits,
                      std::int64_t top_k, GateMode mode) {
  const auto row = documented_log_softmax(row_logits);
  const auto col = documented_log_softmax(col_logits);
  std::vector<float> scores;
  for (const float r : row) {
    for (const float c : col) scores.push_back(r + c);
  }
  Selection selection;
  selection.ids.resize(scores.size());
  std::iota(selection.ids.begin(), selection.ids.end(), 0);
  std::stable_sort(selection.ids.begin(), selection.ids.end(),
                   [&](auto a, auto b) { return scores[a] > scores[b]; });
  const float max = scores[selection.ids[0]];
  selection.ids.resize(static_cast<std::size_t>(top_k));
  std::sort(selection.ids.begin(), selection.ids.end());
  for (const auto id : selection.ids) {
    selection.gates.push_back(std::exp(mode == GateMode::kSoftmax ? scores[id] - max : scores[id]));
  }
  if (mode == GateMode::kSoftmax) {
    const float sum = documented_sum(selection.gates);
    for (float& gate : selection.gates) gate /= sum;
  }
  return selection;
}

/// Logits of one side; `levels` > 0 quantises them, so that many are equal.
std::vector<float> make_logits(std::int64_t extent, std::uint64_t seed, std::uint32_t stream, double levels,
                               double scale) {
  const Philox random(seed, stream);
  std::vector<float> logits;
  for (std::int64_t i = 0; i < extent; ++i) {
    double value = scale * test::normal(random, static_cast<std::uint64_t>(i));
    if (levels > 0) value = std::round(value * levels) / levels;
    logits.push_back(static_cast<float>(value));
  }
  return logits;
}

class RouterSelect : public testing::TestWithParam<SelectCase> {};

TEST_P(RouterSelect, EqualsBruteForceBitForBit) {
  const auto& c = GetParam();
  const bool large = c.rows * c.cols > 10000;
  for (std::uint64_t seed = 0; seed < (large ? 4U : 40U); ++seed) {
    // 0: continuous; 1, 4: quantised; the large scale lets rounding of the sum tie what was distinct.
    for (const double levels : {0.0, 1.0, 4.0}) {
      for (const double scale : {1.0, 3000.0}) {
        for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
          const auto row = make_logits(c.rows, seed, 1, levels, scale);
          const auto col = make_logits(c.cols, seed, 2, levels, 1.0);
          const auto expected = brute_force(row, col, c.top_k, mode);
          reference::TokenSelector selector(c.rows, c.cols, c.top_k, mode);
          Selection actual{std::vector<std::int32_t>(expected.ids.size(), -1),
                           std::vector<float>(expected.ids.size())};
          selector.select(row, col, actual.ids, actual.gates);
          ASSERT_EQ(actual.ids, expected.ids)
              << "seed " << seed << " levels " << levels << " scale " << scale;
          ASSERT_EQ(actual.gates, expected.gates)
              << "seed " << seed << " levels " << levels << " scale " << scale;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, RouterSelect, testing::ValuesIn(kCases), testing::PrintToStringParamName());

TEST(RouterSelectTies, EqualLogitsSelectTheLowestIds) {
  reference::TokenSelector selector(6, 7, 10, GateMode::kSoftmax);
  std::vector<std::int32_t> ids(10);
  std::vector<float> gates(10);
  selector.select(std::vector<float>(6, 2.5F), std::vector<float>(7, -1.0F), ids, gates);
  std::vector<std::int32_t> expected(10);
  std::iota(expected.begin(), expected.end(), 0);
  EXPECT_EQ(ids, expected);
  for (const float gate : gates) EXPECT_FLOAT_EQ(gate, 0.1F);
}

TEST(RouterSelectTies, RoundingTiesOutsideTheYoungDiagramGoToTheLowerId) {
  // Log-probabilities of columns near -7 are multiples of 2^-21, their sums with the rows' near -9 are
  // rounded to 2^-20: columns of different rank tie, and the lower id may have the lower rank, past the K-th
  // too.
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    for (const std::int64_t top_k : {1, 3, 50}) {
      const auto row = make_logits(8, seed, 1, 0x1p21, 2e-6);
      const auto col = make_logits(1100, seed, 2, 0x1p21, 2e-6);
      for (const bool swapped : {false, true}) {
        const auto& rows = swapped ? col : row;
        const auto& cols = swapped ? row : col;
        const auto expected = brute_force(rows, cols, top_k, GateMode::kSoftmax);
        reference::TokenSelector selector(std::ssize(rows), std::ssize(cols), top_k, GateMode::kSoftmax);
        std::vector<std::int32_t> ids(expected.ids.size());
        std::vector<float> gates(expected.ids.size());
        selector.select(rows, cols, ids, gates);
        ASSERT_EQ(ids, expected.ids) << "seed " << seed << " K " << top_k << " swapped " << swapped;
      }
    }
  }
}

TEST(RouterSelectExtremes, SpreadsThatOverflowGiveZeroGates) {
  const std::vector<float> row = {3.0e38F, -3.0e38F};
  const std::vector<float> col = {1.0F, 0.0F};
  reference::TokenSelector selector(2, 2, 4, GateMode::kSoftmax);
  std::vector<std::int32_t> ids(4);
  std::vector<float> gates(4);
  selector.select(row, col, ids, gates);
  EXPECT_EQ(ids, (std::vector<std::int32_t>{0, 1, 2, 3}));
  EXPECT_FLOAT_EQ(gates[0] + gates[1], 1.0F);
  EXPECT_EQ(gates[2], 0.0F);
  EXPECT_EQ(gates[3], 0.0F);
}

TEST(LogSoftmax, IsWithinRoundingOfDoublePrecision) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto logits = make_logits(1 + static_cast<std::int64_t>(seed) * 17, seed, 3, 0, 3.0);
    std::vector<float> p(logits.size());
    reference::log_softmax(logits, p);
    double sum = 0;
    for (const float s : logits) sum += std::exp(static_cast<double>(s));
    for (std::size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(p[i], logits[i] - std::log(sum), 4e-6);
  }
}

RouterLogits make_batch(const LayerShape& shape, std::uint64_t seed) {
  RouterLogits logits{HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_rows),
                      HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_cols)};
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const auto at = seed * 1000 + static_cast<std::uint64_t>(token);
    std::ranges::copy(make_logits(shape.grid_rows, at, 1, 0, 1), logits.row.f32().row(token));
    std::ranges::copy(make_logits(shape.grid_cols, at, 2, 0, 1), logits.col.f32().row(token));
  }
  return logits;
}

TEST(RouterSelectBatch, EmitsValidRoutingThatDoesNotDependOnThreads) {
  for (const LayerShape& shape : test::routing_shapes()) {
    const auto logits = make_batch(shape, 5);
    const auto routing = reference::router_select(shape, logits);
    routing.validate();
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto expected = brute_force(logits.row.f32().row_span(token), logits.col.f32().row_span(token),
                                        shape.top_k, shape.gate_mode);
      ASSERT_TRUE(std::ranges::equal(routing.ids_of(token), expected.ids))
          << shape.label() << " token " << token;
      ASSERT_TRUE(std::ranges::equal(routing.gates_of(token), expected.gates))
          << shape.label() << " token " << token;
    }
    const int threads = omp_get_max_threads();
    omp_set_num_threads(3);
    const auto again = reference::router_select(shape, logits);
    omp_set_num_threads(threads);
    EXPECT_EQ(routing.expert_ids, again.expert_ids);
    EXPECT_EQ(routing.gates, again.gates);
  }
}

std::string refusal(const LayerShape& shape, const RouterLogits& logits) {
  return test::error_text<InvalidArgument>([&] { reference::router_select(shape, logits); });
}

TEST(RouterSelectBatch, RefusesNanAndInfiniteLogitsByNameAndPlace) {
  const auto shape = test::make_shape(5, 8, 6, 7, 3);
  auto logits = make_batch(shape, 1);
  logits.row.f32().row(3)[4] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(refusal(shape, logits), "row_logits[3, 4] = nan: must be finite");
  logits = make_batch(shape, 1);
  logits.col.f32().row(2)[6] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(refusal(shape, logits), "col_logits[2, 6] = -inf: must be finite");
}

TEST(RouterSelectBatch, RefusesLogitsOfAnotherShape) {
  const auto shape = test::make_shape(5, 8, 6, 7, 3);
  auto logits = make_batch(shape, 1);
  logits.col = HostTensor::zeros(Dtype::kF32, 5, 8);
  EXPECT_EQ(refusal(shape, logits), "col_logits = [5, 8] fp32: must be [5, 7] fp32");
  auto too_many = shape;
  too_many.top_k = 43;
  EXPECT_NE(refusal(too_many, make_batch(shape, 1)).find("top_k = 43"), std::string::npos);
}

}  // namespace
}  // namespace moescope
