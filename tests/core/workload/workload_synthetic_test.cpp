#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "core/schedule/skew.hpp"
#include "core/workload/workload.hpp"
#include "tests/support/content_hash.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/plain_router.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

using test::make_shape;

LayerInputs make(std::string_view text, const LayerShape& shape, std::uint64_t seed = 1) {
  return make_workload(WorkloadSpec::parse(text), shape, seed, nullptr);
}

const std::vector<std::string> kSpecs = {"gaussian:1",      "gaussian:0", "zipf:1.2", "hot:0.5,1",
                                         "clustered:4,0.9", "drift:1,3",  "uniform"};

/// Mean square of all values of nested vectors.
double mean_square(const std::vector<std::vector<double>>& values) {
  double sum = 0;
  double count = 0;
  for (const auto& row : values) {
    sum = std::inner_product(row.begin(), row.end(), row.begin(), sum);
    count += static_cast<double>(row.size());
  }
  return sum / count;
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const double ab = std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
  const double aa = std::inner_product(a.begin(), a.end(), a.begin(), 0.0);
  const double bb = std::inner_product(b.begin(), b.end(), b.begin(), 0.0);
  return ab / std::sqrt(aa * bb);
}

TEST(SyntheticWorkload, EveryFamilyFitsEveryShape) {
  for (auto shape : test::routing_shapes()) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      shape.dtype = dtype;
      for (const auto& spec : kSpecs) {
        SCOPED_TRACE(spec + " " + shape.label());
        const LayerInputs inputs = make(spec, shape, 5);
        EXPECT_NO_THROW(inputs.validate());
        EXPECT_EQ(inputs.workload, spec);
        EXPECT_EQ(inputs.seed, 5U);
        EXPECT_EQ(inputs.fixed_routing.has_value(), spec == "uniform");
        EXPECT_EQ(inputs.router.row.empty(), spec == "uniform");
        EXPECT_NO_THROW(test::plain_routing(inputs).validate());
      }
    }
  }
}

TEST(SyntheticWorkload, IsRoundedToStorageOnce) {
  auto shape = make_shape(20, 48, 8, 12, 5);
  for (const auto& spec : kSpecs) {
    shape.dtype = Dtype::kF32;
    const LayerInputs wide = make(spec, shape);
    shape.dtype = Dtype::kBF16;
    const LayerInputs narrow = make(spec, shape);
    EXPECT_EQ(test::content_hash(wide.hidden_states.to(Dtype::kBF16)),
              test::content_hash(narrow.hidden_states))
        << spec;
    EXPECT_EQ(test::content_hash(wide.router.col.to(Dtype::kBF16)), test::content_hash(narrow.router.col))
        << spec;
  }
}

TEST(SyntheticWorkload, DependsOnTheSeedAndNotOnTheNumberOfThreads) {
  const auto shape = make_shape(370, 90, 9, 14, 61);  // large enough to be split among threads
  const int threads = omp_get_max_threads();
  for (const auto& spec : kSpecs) {
    omp_set_num_threads(1);
    const auto alone = test::content_hash(make(spec, shape, 7));
    omp_set_num_threads(5);
    EXPECT_EQ(test::content_hash(make(spec, shape, 7)), alone) << spec;
    EXPECT_NE(test::content_hash(make(spec, shape, 8)), alone) << spec;
  }
  omp_set_num_threads(threads);
}

// Golden values: another machine or compiler must give the same bits.
TEST(SyntheticWorkload, IsTheSameBitsOnEveryMachine) {
  const std::vector<std::tuple<std::string, Dtype, std::uint64_t, std::uint64_t>> golden = {
      {"gaussian:1", Dtype::kBF16, 42U, 3649188366894179425U},
      {"gaussian:1", Dtype::kF32, 42U, 7324234124416794311U},
      {"gaussian:1", Dtype::kBF16, 18446744073709551615U, 17852872088028895747U},
      {"zipf:1.2", Dtype::kBF16, 42U, 6292557699844103197U},
      {"hot:0.5,4", Dtype::kBF16, 42U, 4825037331887746136U},
      {"clustered:16,0.9", Dtype::kF32, 42U, 1716170106572599196U},
      {"drift:1,2.5", Dtype::kBF16, 42U, 12800132122032791811U},
      {"uniform", Dtype::kBF16, 42U, 5546775325658188601U},
      {"uniform", Dtype::kF32, 7U, 15864773549657265678U},
  };
  for (const auto& [spec, dtype, seed, expected] : golden) {
    auto shape = make_shape(130, 72, 24, 40, 33);
    shape.dtype = dtype;
    EXPECT_EQ(test::content_hash(make(spec, shape, seed)), expected)
        << spec << " " << to_string(dtype) << " " << seed;
  }
}

TEST(SyntheticWorkload, UsesTheExpertsItIsGivenAndMakesThemOtherwise) {
  const auto shape = make_shape(4, 16, 4, 4, 2);
  const auto experts = make_expert_weights(shape, 9);
  const auto given = make_workload(WorkloadSpec::parse("zipf"), shape, 1, experts);
  EXPECT_EQ(given.experts, experts);
  EXPECT_EQ(test::content_hash(make("zipf", shape, 9).experts->w_in), test::content_hash(experts->w_in));
}

TEST(SyntheticWorkload, RefusesShapesThatCannotWork) {
  EXPECT_EQ(test::error_text<InvalidArgument>([] { make("gaussian", make_shape(4, 16, 4, 4, 17)); }),
            "top_k = 17: must not exceed num_experts = 16 (4 x 4)");
  EXPECT_EQ(test::error_text<InvalidArgument>([] { make("hot:1,5", make_shape(4, 16, 8, 4, 2)); }),
            "workload = hot:1,5: COUNT = 5 must not exceed grid_rows = 8 and grid_cols = 4");
}

TEST(GaussianWorkload, LogitsHaveTheStandardDeviationAskedFor) {
  const auto shape = make_shape(200, 256, 40, 30, 8);
  for (const double deviation : {0.25, 1.0, 3.0}) {
    const auto inputs = make("gaussian:" + std::to_string(deviation), shape);
    EXPECT_NEAR(mean_square(test::plain_logits(inputs.hidden_states, inputs.router.row, {})) /
                    (deviation * deviation),
                1, 0.1);
    EXPECT_NEAR(mean_square(test::plain_logits(inputs.hidden_states, inputs.router.col, {})) /
                    (deviation * deviation),
                1, 0.1);
    EXPECT_TRUE(inputs.router.row_bias.empty());
  }
  const auto equal = test::plain_routing(make("gaussian:0", shape));
  EXPECT_EQ(equal.ids_of(150)[7], 7);  // all scores tie: the lowest ids win
}

TEST(ZipfWorkload, BiasesAreMinusSLnRankOfEachRankOnce) {
  const auto shape = make_shape(3, 16, 48, 16, 5);
  const auto inputs = make("zipf:1.5", shape);
  for (auto bias : {inputs.router.row_bias, inputs.router.col_bias}) {
    EXPECT_FALSE(std::is_sorted(bias.begin(), bias.end(), std::greater<>()));
    std::sort(bias.begin(), bias.end(), std::greater<>());
    for (std::size_t i = 0; i < bias.size(); ++i) {
      EXPECT_FLOAT_EQ(bias[i], static_cast<float>(-1.5 * std::log(static_cast<double>(i + 1))));
    }
  }
  EXPECT_EQ(test::content_hash(inputs.router.row), test::content_hash(make("gaussian:1", shape).router.row));
}

TEST(DriftWorkload, StepZeroIsZipfAndThePeriodIsSixteen) {
  for (const std::int64_t side : {1, 2, 7, 16, 63}) {
    const auto shape = make_shape(5, 16, side, 20, 4);
    const auto zipf = test::content_hash(make("zipf:1.1", shape));
    EXPECT_EQ(test::content_hash(make("drift:1.1,0", shape)), zipf);
    EXPECT_EQ(test::content_hash(make("drift:1.1,16", shape)), zipf);
    EXPECT_EQ(test::content_hash(make("drift:1.1,1600", shape)), zipf);
    EXPECT_NE(test::content_hash(make("drift:1.1,1", shape)), zipf);
  }
}

/// Indices of the `count` largest biases.
std::set<std::size_t> popular(const std::vector<float>& bias, std::size_t count) {
  std::vector<std::size_t> order(bias.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return bias[a] > bias[b]; });
  return {order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count)};
}

TEST(DriftWorkload, EightStepsReplaceThePopularHalf) {
  const auto shape = make_shape(5, 16, 64, 32, 4);
  const auto before = popular(make("drift:1,0", shape).router.row_bias, 32);
  std::size_t previous_kept = 32;
  for (int step = 1; step <= 8; ++step) {
    std::size_t kept = 0;
    for (const auto row : popular(make("drift:1," + std::to_string(step), shape).router.row_bias, 32)) {
      kept += before.count(row);
    }
    EXPECT_LT(kept, previous_kept) << step;
    previous_kept = kept;
  }
  EXPECT_EQ(previous_kept, 0U);
}

TEST(DriftWorkload, RanksMoveContinuouslyAndTheirDistributionStays) {
  const auto shape = make_shape(5, 16, 64, 32, 4);
  const auto ranks_at = [&](double step) {
    std::vector<double> ranks;
    for (const float bias : make("drift:1," + std::to_string(step), shape).router.row_bias) {
      ranks.push_back(std::exp(-static_cast<double>(bias)));
    }
    return ranks;
  };
  for (double step = 0; step < 16; step += 0.3) {
    auto before = ranks_at(step);
    const auto after = ranks_at(step + 0.01);
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_LE(std::fabs(after[i] - before[i]), 2 * 64 / 16.0 * 0.01 + 1e-4);
    }
    std::sort(before.begin(), before.end());
    for (std::size_t i = 0; i < before.size(); ++i) {
      EXPECT_NEAR(before[i], static_cast<double>(i + 1), 0.5 + 1e-4);
    }
  }
}

TEST(HotWorkload, ExactlyTheFractionOfTokensPrefersTheHotRowsAndColumns) {
  const auto shape = make_shape(101, 64, 20, 24, 9);
  const auto inputs = make("hot:0.25,3", shape);
  const auto plain = make("gaussian:1", shape);
  const auto logits = test::plain_logits(inputs.hidden_states, inputs.router.row, {});
  std::int64_t hot_tokens = 0;
  for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
    const float flag = inputs.hidden_states.at(token, 0);
    hot_tokens += flag == 1 ? 1 : 0;
    EXPECT_TRUE(flag == 0 || flag == 1);
    EXPECT_EQ(inputs.hidden_states.at(token, 1), plain.hidden_states.at(token, 1));
  }
  EXPECT_EQ(hot_tokens, 25);
  std::int64_t hot_rows = 0;
  for (std::int64_t row = 0; row < shape.grid_rows; ++row) {
    const float weight = inputs.router.row.at(row, 0);
    hot_rows += weight == 8 ? 1 : 0;
    EXPECT_TRUE(weight == 0 || weight == 8);
  }
  EXPECT_EQ(hot_rows, 3);
}

TEST(HotWorkload, PutsAllTokensOnTheSameStripsOrOnOneExpert) {
  auto shape = make_shape(60, 64, 20, 24, 30);
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    const auto skew = compute_skew(test::plain_routing(make("hot:1,1,32", shape, seed)));
    EXPECT_EQ(skew.max_strips_per_token, 2);
    EXPECT_LE(skew.active_experts, 20 + 24 - 1);  // one row and one column in all
  }
  shape.top_k = 1;
  EXPECT_EQ(compute_skew(test::plain_routing(make("hot:1,1", shape))).active_experts, 1);
}

TEST(ClusteredWorkload, LogitsCorrelateByRhoWithinAClusterAndNotAcross) {
  const auto shape = make_shape(64, 512, 200, 8, 4);
  const auto reference = make("clustered:4,1", shape);  // tokens of a cluster are equal: tells the clusters
  const auto inputs = make("clustered:4,0.7", shape);
  const auto logits = test::plain_logits(inputs.hidden_states, inputs.router.row, {});
  std::set<std::uint64_t> clusters;
  double within = 0;
  double across = 0;
  std::int64_t within_count = 0;
  std::int64_t across_count = 0;
  for (std::int64_t a = 0; a < shape.num_tokens; ++a) {
    const auto cluster = test::content_hash(reference.hidden_states.slice_rows(a, 1));
    clusters.insert(cluster);
    for (std::int64_t b = 0; b < a; ++b) {
      const double r = correlation(logits[static_cast<std::size_t>(a)], logits[static_cast<std::size_t>(b)]);
      const bool together = test::content_hash(reference.hidden_states.slice_rows(b, 1)) == cluster;
      (together ? within : across) += r;
      ++(together ? within_count : across_count);
    }
  }
  EXPECT_EQ(clusters.size(), 4U);
  EXPECT_NEAR(within / static_cast<double>(within_count), 0.7, 0.07);
  EXPECT_NEAR(across / static_cast<double>(across_count), 0, 0.1);
  EXPECT_NEAR(mean_square(logits), 1, 0.1);
}

TEST(UniformWorkload, GivesEveryExpertTheSameChance) {
  const auto shape = make_shape(4000, 8, 6, 8, 12);
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    const auto inputs = make("uniform", shape, seed);
    const double mean = 4000 * 12 / 48.0;
    double chi_square = 0;
    for (const auto load : expert_loads(*inputs.fixed_routing)) {
      chi_square += std::pow(static_cast<double>(load) - mean, 2) / (mean * (1 - 12 / 48.0));
    }
    EXPECT_NEAR(chi_square, 47 * 48 / 47.0, 5 * std::sqrt(2 * 47));  // 5 standard deviations of chi^2
  }
}

TEST(UniformWorkload, GatesAreASoftmaxOrProbabilitiesOfTheWholeGrid) {
  auto shape = make_shape(300, 8, 16, 16, 64);
  const auto mean_sum = [](const LayerInputs& inputs) {
    const auto& gates = inputs.fixed_routing->gates;
    EXPECT_TRUE(std::all_of(gates.begin(), gates.end(), [](float gate) { return gate > 0; }));
    return std::accumulate(gates.begin(), gates.end(), 0.0) / 300;
  };
  const auto softmax = make("uniform", shape);
  EXPECT_NEAR(mean_sum(softmax), 1, 1e-6);
  const auto gates = softmax.fixed_routing->gates_of(17);
  EXPECT_NEAR(std::accumulate(gates.begin(), gates.end(), 0.0), 1, 1e-6);
  shape.gate_mode = GateMode::kProbability;
  EXPECT_NEAR(mean_sum(make("uniform", shape)), 64 / 256.0, 0.02);
}

TEST(UniformWorkload, WithKEqualToNUsesEveryExpert) {
  const auto inputs = make("uniform", make_shape(3, 8, 32, 32, 1024));
  for (std::int64_t token = 0; token < 3; ++token) {
    for (std::int32_t id = 0; id < 1024; ++id) {
      ASSERT_EQ(inputs.fixed_routing->ids_of(token)[static_cast<std::size_t>(id)], id);
    }
  }
}

TEST(SyntheticWorkload, UnevennessRisesFromUniformOverZipfToHot) {
  const auto shape = make_shape(512, 64, 24, 24, 16);
  for (const std::uint64_t seed : {1U, 2U, 3U}) {
    double previous = 0;
    for (const auto* spec : {"uniform", "gaussian:1", "zipf:1", "hot:1,1,16"}) {
      const double unevenness = compute_skew(test::plain_routing(make(spec, shape, seed))).unevenness;
      EXPECT_GT(unevenness, previous) << spec;
      previous = unevenness;
    }
  }
}

}  // namespace
}  // namespace moescope
