// The expert stage under every schedule: against fp64, against itself, and against the number of threads.
#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>

#include "core/base/error.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/oracle/oracle.hpp"
#include "reference/stages/activation.hpp"
#include "reference/stages/stages.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/layers.hpp"

namespace moescope {
namespace {

using test::error_text;

constexpr std::array kKinds = {ScheduleKind::kTokenCentric, ScheduleKind::kExpertCentric,
                               ScheduleKind::kStaircase, ScheduleKind::kDenseMasked};

ScheduleOptions options_of(ScheduleKind kind, std::int64_t group_size = 16) {
  ScheduleOptions options;
  options.kind = kind;
  options.group_size = group_size;
  return options;
}

/// A layer whose routing is given, so that every skew can be run.
LayerInputs routed_layer(const test::RoutingCase& c, Dtype dtype, std::uint64_t seed) {
  LayerShape shape = c.shape;
  shape.dtype = dtype;
  shape.shared_size = 0;
  auto inputs = test::make_layer(shape, seed);
  inputs.fixed_routing = test::make_routing(c, seed);
  return inputs;
}

bool same_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.bytes())) == 0;
}

class Experts : public testing::TestWithParam<test::RoutingCase> {};

TEST_P(Experts, EverySchedulesOutputIsWithinToleranceOfTheOracle) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const auto inputs = routed_layer(GetParam(), dtype, 11);
    const auto oracle = oracle_layer(inputs, {});
    const auto length = std::max(inputs.shape.hidden_size, inputs.shape.top_k);
    for (const ScheduleKind kind : kKinds) {
      const auto schedule = reference::build(*inputs.fixed_routing, options_of(kind));
      const auto y = reference::experts(inputs, *inputs.fixed_routing, schedule).to(dtype);
      const auto report = compare(y, oracle.view());
      EXPECT_LE(report.relative_error, relative_error_tolerance(dtype, length))
          << to_string(kind) << " " << to_string(dtype) << ": " << report.describe();
    }
  }
}

TEST_P(Experts, FusedEqualsScoresThenCombineBitForBit) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const auto inputs = routed_layer(GetParam(), dtype, 12);
    for (const ScheduleKind kind : kKinds) {
      const auto schedule = reference::build(*inputs.fixed_routing, options_of(kind));
      const auto scores = reference::expert_scores(inputs, *inputs.fixed_routing, schedule);
      EXPECT_TRUE(same_bits(reference::experts(inputs, *inputs.fixed_routing, schedule),
                            reference::expert_combine(inputs, *inputs.fixed_routing, schedule, scores)))
          << to_string(kind) << " " << to_string(dtype);
    }
  }
}

TEST_P(Experts, OutputDoesNotDependOnThreads) {
  const auto inputs = routed_layer(GetParam(), Dtype::kBF16, 13);
  const int threads = omp_get_max_threads();
  for (const ScheduleKind kind : kKinds) {
    const auto schedule = reference::build(*inputs.fixed_routing, options_of(kind));
    omp_set_num_threads(1);
    const auto one = reference::experts(inputs, *inputs.fixed_routing, schedule);
    for (const int count : {2, 5}) {
      omp_set_num_threads(count);
      EXPECT_TRUE(same_bits(one, reference::experts(inputs, *inputs.fixed_routing, schedule)))
          << to_string(kind) << " with " << count << " threads";
    }
  }
  omp_set_num_threads(threads);
}

INSTANTIATE_TEST_SUITE_P(Routings, Experts, testing::ValuesIn(test::routing_cases()),
                         [](const auto& test) { return test.param.name(); });

TEST(ExpertScores, AreGateTimesActivationInCsrOrder) {
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kRelu}) {
    auto inputs =
        routed_layer({test::make_shape(20, 72, 12, 9, 10), test::RoutingSkew::kUniform}, Dtype::kF32, 5);
    inputs.shape.activation = activation;
    const auto& routing = *inputs.fixed_routing;
    for (const ScheduleKind kind : kKinds) {
      const auto scores =
          reference::expert_scores(inputs, routing, reference::build(routing, options_of(kind)));
      ASSERT_EQ(std::ssize(scores), routing.num_pairs());
      for (std::int64_t pair = 0; pair < routing.num_pairs(); ++pair) {
        const auto at = static_cast<std::size_t>(pair);
        double product = 0;
        for (std::int64_t k = 0; k < 72; ++k) {
          product += double{inputs.hidden_states.at(pair / 10, k)} *
                     inputs.experts->w_in.at(routing.expert_ids[at], k);
        }
        ASSERT_NEAR(scores[at], routing.gates[at] * reference::activate(activation, product), 1e-6)
            << to_string(kind) << " " << to_string(activation) << " pair " << pair;
      }
    }
  }
}

TEST(Activation, KnownValues) {
  EXPECT_NEAR(reference::activate(Activation::kSilu, 1.0), 0.7310585786300049, 1e-15);
  EXPECT_NEAR(reference::activate(Activation::kGelu, 1.0), 0.8413447460685429, 1e-15);
  EXPECT_EQ(reference::activate(Activation::kRelu, -2.0F), 0.0F);
  EXPECT_EQ(reference::activate(Activation::kRelu, 2.0F), 2.0F);
  EXPECT_EQ(reference::activate(Activation::kSilu, -200.0F), 0.0F);  // exp overflows, the limit is zero
}

TEST(Experts, ScoresAreRoundedToStorageWhereTensorCoresReadThem) {
  // One token, one expert, x . w = 1, v = 1: y is the score itself.
  LayerShape shape = test::make_shape(1, 1, 1, 1, 1);
  auto inputs = test::make_layer(shape, 2);
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = HostTensor(Dtype::kBF16, 1, 1);
  experts->w_out = HostTensor(Dtype::kBF16, 1, 1);
  experts->w_in.bf16().data[0] = experts->w_out.bf16().data[0] = inputs.hidden_states.bf16().data[0] =
      to_bf16(1);
  inputs.experts = experts;
  inputs.fixed_routing = test::routing_of(1, 1, {{0}});
  const float score = 1 / (1 + std::exp(-1.0F));
  for (const ScheduleKind kind : kKinds) {
    const auto y = reference::experts(inputs, *inputs.fixed_routing,
                                      reference::build(*inputs.fixed_routing, options_of(kind)));
    const bool exact = kind == ScheduleKind::kTokenCentric;
    EXPECT_EQ(y.at(0, 0), exact ? score : round_to(Dtype::kBF16, score)) << to_string(kind);
  }
}

TEST(Experts, ResultDoesNotDependOnGroupSizeBeyondRounding) {
  const auto inputs =
      routed_layer({test::make_shape(40, 64, 16, 16, 30), test::RoutingSkew::kPopular}, Dtype::kF32, 3);
  const auto oracle = oracle_layer(inputs, {});
  for (const std::int64_t group : {1, 3, 64, 1000}) {
    const auto schedule =
        reference::build(*inputs.fixed_routing, options_of(ScheduleKind::kExpertCentric, group));
    const auto report = compare(reference::experts(inputs, *inputs.fixed_routing, schedule), oracle.view());
    EXPECT_LE(report.relative_error, 1e-5) << "B = " << group;
  }
}

TEST(Experts, RefuseWhatDoesNotBelongTogether) {
  const test::RoutingCase c{test::make_shape(6, 8, 4, 4, 2), test::RoutingSkew::kUniform};
  const auto inputs = routed_layer(c, Dtype::kF32, 1);
  const auto& routing = *inputs.fixed_routing;
  const auto schedule = reference::build(routing, options_of(ScheduleKind::kTokenCentric));
  const auto other = test::make_routing({test::make_shape(5, 8, 4, 4, 2), test::RoutingSkew::kUniform}, 1);
  EXPECT_EQ(error_text<InvalidArgument>([&] { reference::experts(inputs, other, schedule); }),
            "routing = 5 tokens, grid 4 x 4: must belong to L6_d8_N16_K2");
  const auto short_schedule = reference::build(other, options_of(ScheduleKind::kTokenCentric));
  EXPECT_EQ(error_text<InvalidArgument>([&] { reference::expert_scores(inputs, routing, short_schedule); }),
            "schedule.sorted_pair_ids = [10]: must hold the routing's 12 pairs");
  const std::vector<float> scores(11);
  EXPECT_EQ(
      error_text<InvalidArgument>([&] { reference::expert_combine(inputs, routing, schedule, scores); }),
      "scores = [11]: must be [12], one per pair");
  EXPECT_EQ(error_text<InvalidArgument>(
                [&] { reference::build(routing, options_of(ScheduleKind::kSparseLibrary)); }),
            "schedule = sparse_library: sparse_library is cuSPARSE and needs the cuda backend");
}

}  // namespace
}  // namespace moescope
