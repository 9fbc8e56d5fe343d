// Tokens, biases and routings that synthetic workloads share.
#include "core/workload/workload_parts.hpp"

#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"

namespace moescope::detail {
namespace {

// Fewer random numbers than this (about 0.2 ms of work) are made by one thread.
constexpr std::int64_t kParallelDraws = 16384;

// drift: the ring turns once in this many steps; half a turn makes the popular half the unpopular one.
constexpr double kDriftPeriodSteps = 16;

/// Draws distinct ids by Floyd's method (Bentley and Floyd, CACM 30(9), 1987): K draws and O(K) memory
/// whatever N.
class DistinctDraw {
 public:
  DistinctDraw(std::int64_t num_experts, std::int64_t top_k)
      : num_experts_(num_experts),
        top_k_(top_k),
        mask_(std::bit_ceil(static_cast<std::size_t>(2 * top_k)) - 1),
        slots_(mask_ + 1) {}

  /// `ids` [K]: each set of K out of N with equal chance, ascending.
  void draw(const Philox& philox, std::int64_t token, std::span<std::int32_t> ids) {
    std::fill(slots_.begin(), slots_.end(), kEmpty);
    for (std::int64_t k = 0; k < top_k_; ++k) {
      const std::int64_t last = num_experts_ - top_k_ + k;
      const double uniform = philox.uniform(static_cast<std::uint64_t>(token * top_k_ + k));
      auto id = static_cast<std::int32_t>(uniform * static_cast<double>(last + 1));
      if (!insert(id)) {
        id = static_cast<std::int32_t>(last);
        insert(id);
      }
      ids[static_cast<std::size_t>(k)] = id;
    }
    std::sort(ids.begin(), ids.end());
  }

 private:
  static constexpr std::int32_t kEmpty = -1;

  /// Open addressing at a load of at most one half. False when the id is there already.
  bool insert(std::int32_t id) {
    // Knuth's multiplicative hash, in 32 bits.
    const std::uint32_t hash = static_cast<std::uint32_t>(id) * 0x9E3779B1U;
    std::size_t slot = hash & mask_;
    while (slots_[slot] != kEmpty) {
      if (slots_[slot] == id) {
        return false;
      }
      slot = (slot + 1) & mask_;
    }
    slots_[slot] = id;
    return true;
  }

  std::int64_t num_experts_;
  std::int64_t top_k_;
  std::size_t mask_;
  std::vector<std::int32_t> slots_;
};

/// Gates of one token from scores z ~ N(0, 1). Softmax over the K (paper eq. 2); or exp of the
/// log-probability of z among N such scores, whose normaliser is N E[e^z] = N e^(1/2); or max(z, 0).
void make_gates(const LayerShape& shape, std::span<double> scores, std::span<float> gates) {
  if (shape.gate_mode == GateMode::kRelu) {
    std::transform(scores.begin(), scores.end(), gates.begin(),
                   [](double z) { return static_cast<float>(std::max(z, 0.0)); });
    return;
  }
  double log_sum = deterministic_log(static_cast<double>(shape.num_experts())) + 0.5;
  if (shape.gate_mode == GateMode::kSoftmax) {
    // |z| <= 6.3: exp cannot overflow, no need to subtract the maximum.
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0, [](double partial, double z) {
      return partial + deterministic_exp(z);
    });
    log_sum = deterministic_log(sum);
  }
  std::transform(scores.begin(), scores.end(), gates.begin(),
                 [&](double z) { return static_cast<float>(deterministic_exp(z - log_sum)); });
}

}  // namespace

void set_element(HostTensor& tensor, std::int64_t row, std::int64_t col, float value) {
  if (tensor.dtype() == Dtype::kBF16) {
    tensor.bf16().row(row)[col] = to_bf16(value);
  } else {
    tensor.f32().row(row)[col] = value;
  }
}

std::vector<float> popularity_bias(std::int64_t count, double exponent, double step, std::uint64_t seed,
                                   RandomStream stream) {
  const auto order = random_permutation(count, seed, stream);
  const auto places = static_cast<double>(count);
  const double head = std::fmod(step, kDriftPeriodSteps) * (places / kDriftPeriodSteps);
  std::vector<float> bias(static_cast<std::size_t>(count));
  for (std::int64_t rank = 0; rank < count; ++rank) {
    const std::int64_t place = rank % 2 == 0 ? rank / 2 : -(rank + 1) / 2;
    double distance = std::fmod(static_cast<double>(place) + 0.25 - head, places);  // in (-places, places)
    distance = std::min(std::fabs(distance), places - std::fabs(distance));
    const double moved_rank = 2 * distance + 0.5;
    bias[static_cast<std::size_t>(order[static_cast<std::size_t>(rank)])] =
        static_cast<float>(-exponent * deterministic_log(moved_rank));
  }
  return bias;
}

std::vector<float> hot_boosts(std::int64_t count, std::int64_t hot, double boost, std::uint64_t seed,
                              RandomStream stream) {
  const auto order = random_permutation(count, seed, stream);
  std::vector<float> boosts(static_cast<std::size_t>(count), 0.0F);
  for (std::int64_t i = 0; i < std::min(hot, count); ++i) {
    boosts[static_cast<std::size_t>(order[static_cast<std::size_t>(i)])] = static_cast<float>(boost);
  }
  return boosts;
}

void flag_hot_tokens(HostTensor& hidden_states, double fraction, std::uint64_t seed) {
  const std::int64_t num_tokens = hidden_states.rows();
  const auto hot = static_cast<std::int64_t>(std::floor(fraction * static_cast<double>(num_tokens) + 0.5));
  const auto order = random_permutation(num_tokens, seed, RandomStream::kHotTokens);
  for (std::int64_t i = 0; i < num_tokens; ++i) {
    set_element(hidden_states, order[static_cast<std::size_t>(i)], 0, i < hot ? 1.0F : 0.0F);
  }
}

HostTensor clustered_tokens(Dtype dtype, std::int64_t num_tokens, std::int64_t hidden_size, double clusters,
                            double correlation, std::uint64_t seed) {
  HostTensor tokens(dtype, num_tokens, hidden_size);
  const double centre_scale = std::sqrt(correlation);
  const double noise_scale = std::sqrt(1 - correlation);
  const Philox philox(seed, static_cast<std::uint32_t>(RandomStream::kClusterOfToken));
#pragma omp parallel if (num_tokens * hidden_size >= kParallelDraws)
  {
    std::vector<double> centre(static_cast<std::size_t>(hidden_size));
    std::vector<double> noise(static_cast<std::size_t>(hidden_size));
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < num_tokens; ++token) {
      const auto cluster =
          static_cast<std::int64_t>(philox.uniform(static_cast<std::uint64_t>(token)) * clusters);
      standard_normals(seed, RandomStream::kClusterCentres, static_cast<std::uint64_t>(cluster * hidden_size),
                       centre);
      standard_normals(seed, RandomStream::kHiddenStates, static_cast<std::uint64_t>(token * hidden_size),
                       noise);
      for (std::int64_t j = 0; j < hidden_size; ++j) {
        const auto at = static_cast<std::size_t>(j);
        set_element(tokens, token, j,
                    static_cast<float>(centre_scale * centre[at] + noise_scale * noise[at]));
      }
    }
  }
  return tokens;
}

Routing uniform_routing(const LayerShape& shape, std::uint64_t seed) {
  const auto pairs = static_cast<std::uint64_t>(shape.num_pairs());
  const auto thread_bytes =
      static_cast<std::uint64_t>(shape.top_k) * (4 * sizeof(std::int32_t) + sizeof(double));
  require_host_memory("uniform routing",
                      static_cast<double>(pairs * (sizeof(std::int32_t) + sizeof(float)) +
                                          thread_bytes * static_cast<std::uint64_t>(omp_get_max_threads())));
  Routing routing{.num_tokens = shape.num_tokens,
                  .grid_rows = shape.grid_rows,
                  .grid_cols = shape.grid_cols,
                  .token_offsets = std::vector<std::int64_t>(static_cast<std::size_t>(shape.num_tokens) + 1),
                  .expert_ids = std::vector<std::int32_t>(pairs),
                  .gates = std::vector<float>(pairs)};
  for (std::int64_t token = 0; token <= shape.num_tokens; ++token) {
    routing.token_offsets[static_cast<std::size_t>(token)] = token * shape.top_k;
  }
  const Philox philox(seed, static_cast<std::uint32_t>(RandomStream::kUniformIds));
  const auto top_k = static_cast<std::size_t>(shape.top_k);
#pragma omp parallel if (shape.num_pairs() >= kParallelDraws)
  {
    DistinctDraw distinct(shape.num_experts(), shape.top_k);
    std::vector<double> scores(top_k);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto first = static_cast<std::uint64_t>(token * shape.top_k);
      distinct.draw(philox, token, std::span(routing.expert_ids).subspan(first, top_k));
      standard_normals(seed, RandomStream::kUniformScores, first, scores);
      make_gates(shape, scores, std::span(routing.gates).subspan(first, top_k));
    }
  }
  return routing;
}

void require_hot_room(const WorkloadSpec& spec, std::int64_t most, std::string_view what) {
  if (spec.family != WorkloadSpec::Family::kHot) {
    return;
  }
  const auto count = static_cast<std::int64_t>(spec.parameters[1]);
  if (count > most) {
    throw InvalidArgument("workload", spec.text, fmt::format("COUNT = {} must not exceed {}", count, what));
  }
}

}  // namespace moescope::detail
