// Every baseline on the CPU against the fp64 oracle, over awkward shapes, and what it promises of its runs.
#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>
#include <functional>

#include "core/base/error.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system_cost.hpp"
#include "core/systems/system_traits.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/oracle/system_oracle.hpp"
#include "tests/support/error_text.hpp"
#include "tests/support/systems.hpp"

namespace moescope {
namespace {

void expect_correct(const SystemShape& shape, std::uint64_t seed) {
  const SystemInputs inputs = make_system_inputs(shape, 1, seed);
  ReferenceBackend backend;
  const SystemCheck check = check_system(backend, inputs, shape.num_tokens);
  EXPECT_TRUE(check.passed()) << shape.label() << ", " << shape.heads << " heads, " << to_string(shape.dtype)
                              << ": " << check.describe();
  EXPECT_EQ(check.selection.compared_pairs, shape.num_tokens * shape.top_k) << shape.label();
}

class EveryBaseline : public testing::TestWithParam<System> {};

TEST_P(EveryBaseline, AgreesWithTheOracleOnAwkwardShapes) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    const auto run = [&](SystemShape shape, std::uint64_t seed) {
      shape.dtype = dtype;
      expect_correct(shape, seed);
    };
    run(test::system_shape(GetParam(), 37, 40, 49, 6, 3), 1);  // several blocks of nothing round
    run(test::system_shape(GetParam(), 1, 33, 16, 4, 1), 2);   // one token
    run(test::system_shape(GetParam(), 70, 24, 9, 1, 1), 3);   // K = 1; more than one block of tokens
    run(test::system_shape(GetParam(), 5, 24, 16, 16, 1), 4);  // K = N
    run(test::system_shape(GetParam(), 9, 48, 64, 16, 8), 5);  // eight heads
    run(test::system_shape(GetParam(), 4, 17, 1, 1, 1), 6);    // a single expert
  }
}

TEST_P(EveryBaseline, GivesTheSameBitsForAnyNumberOfThreads) {
  const SystemInputs inputs = make_system_inputs(test::small_system(GetParam(), Dtype::kBF16), 1, 7);
  ReferenceBackend backend;
  const int threads_before = omp_get_max_threads();
  std::vector<HostTensor> outputs;
  for (const int threads : {1, 2, 5}) {
    omp_set_num_threads(threads);
    const auto execution = backend.prepare_system(inputs);
    EXPECT_TRUE(execution->deterministic());
    execution->run(L2State::kWarm);
    outputs.push_back(execution->output());
  }
  omp_set_num_threads(threads_before);
  for (const HostTensor& output : outputs) {
    EXPECT_EQ(std::memcmp(output.data(), outputs.front().data(), static_cast<std::size_t>(output.bytes())),
              0);
  }
}

TEST_P(EveryBaseline, RunsItsStagesInOrderAndAccountsForEach) {
  const SystemInputs inputs = make_system_inputs(test::small_system(GetParam(), Dtype::kF32), 1, 8);
  ReferenceBackend backend;
  std::string why;
  EXPECT_TRUE(backend.supports_system(GetParam(), why)) << why;
  const auto execution = backend.prepare_system(inputs);
  const auto times = execution->run(L2State::kCold);
  const auto stages = system_stages(GetParam());
  ASSERT_EQ(times.size(), stages.size() + 1);
  const auto memory = execution->memory();
  const AnalyticCost cost = analytic_cost(inputs.shape, execution->routing());
  for (std::size_t s = 0; s < stages.size(); ++s) {
    EXPECT_EQ(times[s].stage, stages[s]);
    EXPECT_EQ(execution->stages()[s], stages[s]);
    const auto accounted =
        std::find_if(memory.begin(), memory.end(), [&](const auto& m) { return m.stage == stages[s]; });
    ASSERT_NE(accounted, memory.end()) << to_string(stages[s]);
    EXPECT_GT(accounted->workspace_bytes, 0);
    EXPECT_GT(cost.bytes(stages[s], MemoryLevel::kHbm), 0) << to_string(stages[s]);
  }
  EXPECT_EQ(times.back().stage, Stage::kLayer);
  const HostTensor output = execution->output();
  for (const Stage stage : stages) {  // one by one, as a profiler does
    execution->enqueue(stage);
  }
  execution->synchronize();
  EXPECT_EQ(std::memcmp(output.data(), execution->output().data(), static_cast<std::size_t>(output.bytes())),
            0);
}

TEST_P(EveryBaseline, RefusesInputsThatDoNotFit) {
  SystemInputs inputs = make_system_inputs(test::small_system(GetParam(), Dtype::kF32), 1, 9);
  inputs.hidden_states = HostTensor::zeros(Dtype::kF32, 36, 40);
  ReferenceBackend backend;
  EXPECT_EQ(test::error_text<InvalidArgument>([&] { backend.prepare_system(inputs); }),
            "hidden_states = [36, 40] fp32: must be [37, 40] fp32 for " + inputs.shape.label());
}

TEST_P(EveryBaseline, RefusesAScheduleItDoesNotHave) {
  SystemInputs inputs = make_system_inputs(test::small_system(GetParam(), Dtype::kF32), 1, 9);
  ReferenceBackend backend;
  const auto refusal = [&](ScheduleKind kind) {
    inputs.schedule = kind;
    return test::error_text<InvalidArgument>([&] { backend.prepare_system(inputs); });
  };
  const SystemTraits& traits = traits_of(GetParam());
  EXPECT_EQ(
      refusal(ScheduleKind::kStaircase),
      "schedule = staircase: must be one of " + traits.schedule_names() + " for " + std::string(traits.name));
  if (inputs.shape.has_product_keys()) {  // on the GPU alone
    EXPECT_EQ(refusal(ScheduleKind::kDenseMasked), "schedule = dense_masked: the cpu backend gathers");
  }
}

// The same layer in any order of work, and each of them against the oracle.
TEST(Ffn, EveryScheduleAgreesWithTheOracle) {
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
      SystemShape shape = test::system_shape(system, 150, 33, 10, 3);
      shape.dtype = dtype;
      for (const ScheduleKind kind : traits_of(system).schedules) {
        SystemInputs inputs = make_system_inputs(shape, 2, 13);
        inputs.schedule = kind;
        ReferenceBackend backend;
        const SystemCheck check = check_system(backend, inputs, shape.num_tokens);
        EXPECT_TRUE(check.passed()) << to_string(kind) << " " << shape.label() << ": " << check.describe();
        EXPECT_EQ(check.ran, kind);
        const auto execution = backend.prepare_system(inputs);
        execution->run(L2State::kWarm);
        const Routing routing = execution->routing();
        EXPECT_NO_THROW(validate(build_schedule(routing, execution->schedule_options()), routing));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Systems, EveryBaseline, testing::ValuesIn(test::kBaselines),
                         [](const auto& test) { return std::string(to_string(test.param)); });

TEST(Peer, ReluGatesAgreeWithTheOracle) {
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    SystemShape shape = test::system_shape(System::kPeer, 21, 32, 64, 12, 4);
    shape.gate_mode = GateMode::kRelu;
    shape.dtype = dtype;
    expect_correct(shape, 11);
  }
}

TEST(Ffn, GatesOfEitherKindAgreeWithTheOracle) {
  for (const System system : {System::kGShard, System::kDeepSeekMoe}) {
    for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
      SystemShape shape = test::system_shape(system, 21, 32, 10, 3);
      shape.gate_mode = mode;
      expect_correct(shape, 12);
    }
  }
}

/// All scores are equal: the K lowest ids.
TEST(Systems, TiesGoToTheLowerIds) {
  for (const System system : {System::kGShard, System::kPkm, System::kPeer}) {
    const SystemInputs inputs = make_system_inputs(test::system_shape(system, 3, 16, 16, 6, 1), 0, 1);
    ReferenceBackend backend;
    const auto execution = backend.prepare_system(inputs);
    execution->run(L2State::kWarm);
    const Routing routing = execution->routing();
    routing.validate();
    for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
      for (std::int32_t k = 0; k < 6; ++k) {
        EXPECT_EQ(routing.ids_of(query)[static_cast<std::size_t>(k)], k) << to_string(system);
      }
    }
    EXPECT_TRUE(check_system(backend, inputs, 3).selection.ok());
  }
}

TEST(Systems, NonFiniteLogitsAreNamed) {
  SystemInputs inputs = make_system_inputs(test::system_shape(System::kPeer, 3, 16, 16, 2, 2), 1, 1);
  inputs.hidden_states.f32().row(1)[0] = std::numeric_limits<float>::infinity();
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  const auto message = test::error_text<InvalidArgument>([&] { execution->run(L2State::kWarm); });
  EXPECT_TRUE(message.starts_with("row_logits[2, 0] = ")) << message;  // token 1 of 2 heads: row 2
}

TEST(Systems, FfnScheduleIsAValidPermutationByExpert) {
  const SystemInputs inputs = make_system_inputs(test::system_shape(System::kGShard, 50, 16, 12, 3), 1, 2);
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  execution->run(L2State::kWarm);
  const Routing routing = execution->routing();
  const Schedule schedule = build_schedule(routing, execution->schedule_options());
  EXPECT_NO_THROW(validate(schedule, routing));
  for (const WorkItem& item : schedule.items) {
    EXPECT_EQ(item.expert_end - item.expert_begin, 1);
  }
}

TEST(Systems, ABackendWithoutThemSaysSo) {
  ReferenceBackend backend;
  std::string why;
  EXPECT_FALSE(backend.supports_system(System::kOmniMoe, why));
  EXPECT_EQ(why, "omnimoe is prepared from LayerInputs");
}

TEST(SystemOracle, FindsASelectionThatIsWrong) {
  const SystemInputs inputs = make_system_inputs(test::system_shape(System::kPkm, 3, 16, 16, 4, 2), 1, 3);
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  execution->run(L2State::kWarm);
  Routing routing = execution->routing();
  const SystemOracle truth = system_oracle(inputs, {}, nullptr);
  EXPECT_TRUE(compare_selection(routing, truth.routing).ok());
  // One of the four experts of query 1 for one that was not selected. If it is the lowest of the four, it
  // lies at the threshold itself and counts as a near-tie; the other one cannot.
  std::vector<std::int32_t> ids(routing.ids_of(1).begin(), routing.ids_of(1).end());
  std::int32_t other = 0;
  while (std::find(ids.begin(), ids.end(), other) != ids.end()) {
    ++other;
  }
  ids[0] = other;
  std::sort(ids.begin(), ids.end());
  std::copy(ids.begin(), ids.end(), routing.expert_ids.begin() + routing.token_offsets[1]);
  EXPECT_GE(compare_selection(routing, truth.routing).wrong, 1);
  routing.num_tokens = 3;
  EXPECT_TRUE(test::error_text<InvalidArgument>([&] {
                system_oracle(inputs, {}, &routing);
              }).starts_with("selection"));
}

SystemWeights clone(const SystemWeights& weights) {
  SystemWeights copy;
  copy.router = weights.router.clone();
  copy.w_in = weights.w_in.clone();
  copy.w_out = weights.w_out.clone();
  if (weights.experts) {
    copy.experts = FfnExpertWeights{weights.experts->gate_up.clone(), weights.experts->down.clone()};
  }
  if (weights.keys) {
    copy.keys = ProductKeyWeights{weights.keys->queries.clone(), weights.keys->keys.clone(),
                                  weights.keys->norm_weight, weights.keys->norm_bias};
  }
  if (weights.shared) {
    copy.shared = SharedMlpWeights{weights.shared->gate.clone(), weights.shared->up.clone(),
                                   weights.shared->down.clone()};
  }
  return copy;
}

/// Copies row `from` of a tensor to all the others of its rows that `takes` takes.
void repeat_row(HostTensor& tensor, std::int64_t from, const std::function<bool(std::int64_t)>& takes) {
  const auto bytes = static_cast<std::size_t>(tensor.bytes() / tensor.rows());
  for (std::int64_t row = 0; row < tensor.rows(); ++row) {
    if (takes(row) && row != from) {
      std::memcpy(tensor.data() + static_cast<std::size_t>(row) * bytes,
                  tensor.data() + static_cast<std::size_t>(from) * bytes, bytes);
    }
  }
}

// Experts with one and the same router row, or sub-keys, tie: the lower ids are taken, in every system.
TEST_P(EveryBaseline, BreaksTiesOfEqualRouterRowsByTheLowerId) {
  SystemShape shape = test::system_shape(GetParam(), 21, 40, 49, 6, 3);
  if (!shape.has_routing()) {
    GTEST_SKIP() << "routes nothing";
  }
  for (const Dtype dtype : {Dtype::kF32, Dtype::kBF16}) {
    shape.dtype = dtype;
    SystemInputs inputs = make_system_inputs(shape, 1, 11);
    SystemWeights weights = clone(*inputs.weights);
    if (shape.has_ffn_experts()) {
      repeat_row(weights.router, 0, [](std::int64_t) { return true; });
    } else {  // of each head and half
      for (std::int64_t head = 0; head < shape.heads; ++head) {
        for (const std::int64_t half : {0, 1}) {
          const std::int64_t first = head * shape.num_keys() * 2;
          repeat_row(weights.keys->keys, first + half, [&](std::int64_t row) {
            return row >= first && row < first + shape.num_keys() * 2 && row % 2 == half;
          });
        }
      }
    }
    inputs.weights = std::make_shared<const SystemWeights>(std::move(weights));
    ReferenceBackend backend;
    const auto execution = backend.prepare_system(inputs);
    execution->run(L2State::kWarm);
    const Routing routing = execution->routing();
    for (std::int64_t query = 0; query < routing.num_tokens; ++query) {
      const auto ids = routing.ids_of(query);
      for (std::size_t k = 0; k < ids.size(); ++k) {
        ASSERT_EQ(ids[k], static_cast<std::int32_t>(k)) << to_string(dtype) << " query " << query;
      }
    }
  }
}

// What a check of a baseline may show, too, when it compares few outputs.
TEST_P(EveryBaseline, PassesItsCheckHoweverSmallItIs) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    SystemShape shape =
        test::system_shape(GetParam(), 1 + static_cast<std::int64_t>(seed % 3),
                           1 + static_cast<std::int64_t>(seed % 11), 9, 3, seed % 2 == 0 ? 1 : 3);
    shape.dtype = seed % 4 == 0 ? Dtype::kF32 : Dtype::kBF16;
    expect_correct(shape, seed);
  }
}

}  // namespace
}  // namespace moescope
