// Layers that promise the same bits from run to run, run again and again at a size where every multiprocessor
// is busy: a race shows in one run of thousands, and sooner where processes share the GPU.
// MOESCOPE_REPEATED_RUNS (environment): more runs than a test has.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "core/workload/workload.hpp"
#include "kernels/cuda_backend.hpp"
#include "tests/support/gpu_guard.hpp"
#include "tests/support/routings.hpp"

namespace moescope {
namespace {

constexpr std::int64_t kRuns = 200;

std::int64_t repeated_runs() {
  const char* const wanted = std::getenv("MOESCOPE_REPEATED_RUNS");  // NOLINT(concurrency-mt-unsafe)
  return wanted == nullptr ? kRuns : std::max<std::int64_t>(2, std::atoll(wanted));
}

LayerInputs table_a_layer(std::int64_t num_tokens, std::string_view workload) {
  LayerShape shape = test::make_shape(num_tokens, 1024, 320, 320, 512, 1024);
  shape.dtype = Dtype::kBF16;
  return make_workload(WorkloadSpec::parse(workload), shape, 0);
}

bool equal_bits(const HostTensor& a, const HostTensor& b) {
  return a.bytes() == b.bytes() && std::equal(a.data(), a.data() + a.bytes(), b.data());
}

/// Where two outputs differ: which tokens, which columns.
std::string describe_difference(const HostTensor& first, const HostTensor& again) {
  std::set<std::int64_t> tokens;
  std::set<std::int64_t> chunks;
  std::int64_t elements = 0;
  for (std::int64_t token = 0; token < first.rows(); ++token) {
    for (std::int64_t column = 0; column < first.cols(); ++column) {
      if (first.at(token, column) != again.at(token, column)) {
        ++elements;
        tokens.insert(token);
        chunks.insert(column / 64);
      }
    }
  }
  std::string text = fmt::format("{} elements of {} tokens differ, columns / 64 in", elements, tokens.size());
  for (const std::int64_t chunk : chunks) {
    text += fmt::format(" {}", chunk);
  }
  text += "; tokens";
  for (const std::int64_t token : tokens) {
    text += fmt::format(" {}", token);
    if (text.size() > 400) {
      return text + " ...";
    }
  }
  return text;
}

std::string describe_difference(const Routing& first, const Routing& again) {
  std::int64_t ids = 0;
  std::int64_t gates = 0;
  for (std::size_t i = 0; i < first.expert_ids.size(); ++i) {
    ids += first.expert_ids[i] != again.expert_ids[i] ? 1 : 0;
    gates += first.gates[i] != again.gates[i] ? 1 : 0;
  }
  return fmt::format("of the pairs {} have another expert, {} another gate", ids, gates);
}

struct RepeatedLayer {
  std::int64_t num_tokens;
  const char* workload;
  const char* schedule;
};

class RepeatedRuns : public testing::TestWithParam<RepeatedLayer> {};

TEST_P(RepeatedRuns, HaveTheSameBits) {
  MOESCOPE_NEEDS_GPU();
  const RepeatedLayer& of = GetParam();
  const auto backend = make_cuda_backend();
  const LayerInputs inputs = table_a_layer(of.num_tokens, of.workload);
  const auto layer = backend->prepare(inputs, parse_schedule(of.schedule));
  ASSERT_TRUE(layer->deterministic());
  layer->run(L2State::kCold);
  const HostTensor first = layer->output();
  const Routing routing = layer->routing();
  std::int64_t differing = 0;
  const std::int64_t runs = repeated_runs();
  for (std::int64_t run = 1; run < runs; ++run) {
    layer->run(run % 2 == 0 ? L2State::kCold : L2State::kWarm);
    const HostTensor again = layer->output();
    if (!equal_bits(first, again) && ++differing <= 3) {
      ADD_FAILURE() << "run " << run << ": " << describe_difference(first, again) << "; "
                    << describe_difference(routing, layer->routing());
    }
  }
  EXPECT_EQ(differing, 0) << "of " << runs << " runs";
}

INSTANTIATE_TEST_SUITE_P(TableA, RepeatedRuns,
                         testing::Values(RepeatedLayer{4096, "zipf:1", "staircase"},
                                         RepeatedLayer{4096, "gaussian:1", "staircase"},
                                         RepeatedLayer{1024, "zipf:1", "staircase:rows"},
                                         RepeatedLayer{1024, "gaussian:1", "token_centric"},
                                         RepeatedLayer{1024, "gaussian:1", "dense_masked"}),
                         [](const auto& layer) {
                           std::string name = fmt::format("L{}_{}_{}", layer.param.num_tokens,
                                                          layer.param.workload, layer.param.schedule);
                           std::ranges::replace_if(
                               name, [](char c) { return std::isalnum(c) == 0; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace moescope
