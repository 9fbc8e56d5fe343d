// Selection per token on one thread: the staircase algorithm against std::partial_sort over the N scores.
// The baseline is favoured: it starts from the scores' marginals (no log-softmax) and makes neither gates nor
// the order by expert id. Counter time_per_token_s is seconds per token, averaged over tokens with different
// logits.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/workload/deterministic_math.hpp"
#include "reference/stages/router_select.hpp"

namespace {

using namespace moescope;

constexpr std::int64_t kTopK = 512;
constexpr std::int64_t kTokens = 64;  // distinct tokens, so that branch predictors cannot learn one

/// N(0, 1) logits of all tokens, [kTokens, side].
HostTensor make_logits(std::int64_t side, RandomStream stream) {
  HostTensor logits(Dtype::kF32, kTokens, side);
  fill_normal(logits, 1.0, 1, stream);
  return logits;
}

void report_time_per_token(benchmark::State& state) {
  state.counters["num_experts"] = static_cast<double>(state.range(0) * state.range(0));
  state.counters["time_per_token_s"] = benchmark::Counter(
      static_cast<double>(state.iterations()), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void staircase(benchmark::State& state) {
  const auto side = state.range(0);
  const HostTensor row = make_logits(side, RandomStream::kRouterRow);
  const HostTensor col = make_logits(side, RandomStream::kRouterCol);
  reference::TokenSelector selector(side, side, kTopK, GateMode::kSoftmax);
  std::vector<std::int32_t> ids(kTopK);
  std::vector<float> gates(kTopK);
  std::int64_t token = 0;
  while (state.KeepRunning()) {
    selector.select(row.f32().row_span(token), col.f32().row_span(token), ids, gates);
    benchmark::DoNotOptimize(ids.data());
    benchmark::DoNotOptimize(gates.data());
    token = (token + 1) % kTokens;
  }
  report_time_per_token(state);
}

void partial_sort(benchmark::State& state) {
  const auto side = state.range(0);
  const HostTensor row = make_logits(side, RandomStream::kRouterRow);
  const HostTensor col = make_logits(side, RandomStream::kRouterCol);
  using Scored = std::pair<float, std::int32_t>;
  std::vector<Scored> scores(static_cast<std::size_t>(side * side));
  std::int64_t token = 0;
  while (state.KeepRunning()) {
    const float* p_row = row.f32().row(token);
    const float* p_col = col.f32().row(token);
    for (std::int64_t i = 0; i < side; ++i) {
      for (std::int64_t j = 0; j < side; ++j) {
        const auto id = i * side + j;
        scores[static_cast<std::size_t>(id)] = {p_row[i] + p_col[j], static_cast<std::int32_t>(id)};
      }
    }
    std::partial_sort(scores.begin(), scores.begin() + kTopK, scores.end(),
                      [](const Scored& a, const Scored& b) {
                        return a.first > b.first || (a.first == b.first && a.second < b.second);
                      });
    benchmark::DoNotOptimize(scores.data());
    token = (token + 1) % kTokens;
  }
  report_time_per_token(state);
}

BENCHMARK(staircase)->Arg(64)->Arg(128)->Arg(320)->Arg(512)->Arg(1024);
BENCHMARK(partial_sort)->Arg(64)->Arg(128)->Arg(320)->Arg(512)->Arg(1024);

}  // namespace

BENCHMARK_MAIN();
