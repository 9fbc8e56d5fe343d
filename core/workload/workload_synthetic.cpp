// Synthetic workloads. All but `uniform` are made as hidden states X [L, d] and router weights and biases, so
// that the logits X Wr^T + b_r have the wanted distribution and every backend runs its whole router on them.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"
#include "core/workload/deterministic_math.hpp"
#include "core/workload/workload_sources.hpp"

namespace moescope::detail {
namespace {

using Family = WorkloadSpec::Family;

// Fewer random numbers than this (about 0.2 ms of work) are made by one thread.
constexpr std::int64_t kParallelSize = 16384;

void set(HostTensor& tensor, std::int64_t row, std::int64_t col, float value) {
  if (tensor.dtype() == Dtype::kBF16) {
    tensor.bf16().row(row)[col] = to_bf16(value);
  } else {
    tensor.f32().row(row)[col] = value;
  }
}

HostTensor normal_tensor(const LayerShape& shape, std::int64_t rows, double standard_deviation,
                         std::uint64_t seed, RandomStream stream) {
  HostTensor tensor(shape.dtype, rows, shape.hidden_size);
  fill_normal(tensor, standard_deviation, seed, stream);
  return tensor;
}

/// Router weights ~ N(0, STD^2 / d): given a token's X with |X|^2 = d its logits are independent N(0, STD^2).
void make_router(LayerInputs& inputs, double standard_deviation) {
  const auto& shape = inputs.shape;
  const double scale = standard_deviation / std::sqrt(static_cast<double>(shape.hidden_size));
  inputs.router.row = normal_tensor(shape, shape.grid_rows, scale, inputs.seed, RandomStream::kRouterRow);
  inputs.router.col = normal_tensor(shape, shape.grid_cols, scale, inputs.seed, RandomStream::kRouterCol);
}

HostTensor normal_hidden_states(const LayerInputs& inputs) {
  return normal_tensor(inputs.shape, inputs.shape.num_tokens, 1, inputs.seed, RandomStream::kHiddenStates);
}

void make_gaussian(LayerInputs& inputs, double standard_deviation) {
  inputs.hidden_states = normal_hidden_states(inputs);
  make_router(inputs, standard_deviation);
}

// drift: the ring turns once in this many steps; half a turn makes the popular half the unpopular one.
constexpr double kDriftPeriodSteps = 16;

/// Bias -S ln(rank_i) for `count` rows or columns, ranks 1..count in random order, moved on by `step`.
/// Ranks lie on a ring of `count` places: 1, 3, 5, ... to one side of its head and 2, 4, 6, ... to the other;
/// an item at signed distance t from the head, on a head at -1/4, has rank 2 |t| + 1/2. The head moves count
/// / period places a step, so ranks change continuously: nothing jumps from unpopular to popular.
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

/// zipf:S is drift:S,0.
void make_drift(LayerInputs& inputs, double exponent, double step) {
  make_gaussian(inputs, 1);
  const auto& shape = inputs.shape;
  inputs.router.row_bias =
      popularity_bias(shape.grid_rows, exponent, step, inputs.seed, RandomStream::kRowRanks);
  inputs.router.col_bias =
      popularity_bias(shape.grid_cols, exponent, step, inputs.seed, RandomStream::kColRanks);
}

/// Feature 0 is a flag: 1 for hot tokens, 0 for others. Its router weight is `boost` for hot rows, 0 for
/// others.
void set_hot_weights(HostTensor& router, std::int64_t count, double boost, std::uint64_t seed,
                     RandomStream stream) {
  const auto order = random_permutation(router.rows(), seed, stream);
  for (std::int64_t i = 0; i < router.rows(); ++i) {
    set(router, order[static_cast<std::size_t>(i)], 0, i < count ? static_cast<float>(boost) : 0.0F);
  }
}

/// hot:FRACTION,COUNT[,BOOST]. Exactly round(FRACTION L) tokens are hot; all other features are as in
/// gaussian:1.
void make_hot(LayerInputs& inputs, const WorkloadSpec& spec) {
  const auto& shape = inputs.shape;
  const auto count = static_cast<std::int64_t>(spec.parameters[1]);
  make_gaussian(inputs, 1);
  const auto hot_tokens =
      static_cast<std::int64_t>(std::floor(spec.parameters[0] * static_cast<double>(shape.num_tokens) + 0.5));
  const auto order = random_permutation(shape.num_tokens, inputs.seed, RandomStream::kHotTokens);
  for (std::int64_t i = 0; i < shape.num_tokens; ++i) {
    set(inputs.hidden_states, order[static_cast<std::size_t>(i)], 0, i < hot_tokens ? 1.0F : 0.0F);
  }
  set_hot_weights(inputs.router.row, count, spec.parameters[2], inputs.seed, RandomStream::kRowRanks);
  set_hot_weights(inputs.router.col, count, spec.parameters[2], inputs.seed, RandomStream::kColRanks);
}

/// clustered:C,RHO. X_t = sqrt(RHO) centre + sqrt(1 - RHO) noise, both N(0, 1); a token's cluster is uniform
/// in C.
void make_clustered(LayerInputs& inputs, double clusters, double correlation) {
  make_router(inputs, 1);
  const auto& shape = inputs.shape;
  const auto d = shape.hidden_size;
  inputs.hidden_states = HostTensor(shape.dtype, shape.num_tokens, d);
  const double centre_scale = std::sqrt(correlation);
  const double noise_scale = std::sqrt(1 - correlation);
  const Philox philox(inputs.seed, static_cast<std::uint32_t>(RandomStream::kClusterOfToken));
#pragma omp parallel if (shape.num_tokens * d >= kParallelSize)
  {
    std::vector<double> centre(static_cast<std::size_t>(d));
    std::vector<double> noise(static_cast<std::size_t>(d));
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto cluster =
          static_cast<std::int64_t>(philox.uniform(static_cast<std::uint64_t>(token)) * clusters);
      standard_normals(inputs.seed, RandomStream::kClusterCentres, static_cast<std::uint64_t>(cluster * d),
                       centre);
      standard_normals(inputs.seed, RandomStream::kHiddenStates, static_cast<std::uint64_t>(token * d),
                       noise);
      for (std::int64_t j = 0; j < d; ++j) {
        const auto at = static_cast<std::size_t>(j);
        set(inputs.hidden_states, token, j,
            static_cast<float>(centre_scale * centre[at] + noise_scale * noise[at]));
      }
    }
  }
}

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
/// log-probability of z among N such scores, whose normaliser is N E[e^z] = N e^(1/2).
void make_gates(const LayerShape& shape, std::span<double> scores, std::span<float> gates) {
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

/// uniform: no router; X ~ N(0, 1).
void make_uniform(LayerInputs& inputs) {
  const auto& shape = inputs.shape;
  const auto pairs = static_cast<std::uint64_t>(shape.num_pairs());
  const auto thread_bytes =
      static_cast<std::uint64_t>(shape.top_k) * (4 * sizeof(std::int32_t) + sizeof(double));
  require_host_memory("uniform routing",
                      static_cast<double>(pairs * (sizeof(std::int32_t) + sizeof(float)) +
                                          thread_bytes * static_cast<std::uint64_t>(omp_get_max_threads())));
  inputs.hidden_states = normal_hidden_states(inputs);
  Routing routing{.num_tokens = shape.num_tokens,
                  .grid_rows = shape.grid_rows,
                  .grid_cols = shape.grid_cols,
                  .token_offsets = std::vector<std::int64_t>(static_cast<std::size_t>(shape.num_tokens) + 1),
                  .expert_ids = std::vector<std::int32_t>(pairs),
                  .gates = std::vector<float>(pairs)};
  for (std::int64_t token = 0; token <= shape.num_tokens; ++token) {
    routing.token_offsets[static_cast<std::size_t>(token)] = token * shape.top_k;
  }
  const Philox philox(inputs.seed, static_cast<std::uint32_t>(RandomStream::kUniformIds));
  const auto top_k = static_cast<std::size_t>(shape.top_k);
#pragma omp parallel if (shape.num_pairs() >= kParallelSize)
  {
    DistinctDraw distinct(shape.num_experts(), shape.top_k);
    std::vector<double> scores(top_k);
#pragma omp for schedule(static)
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      const auto first = static_cast<std::uint64_t>(token * shape.top_k);
      distinct.draw(philox, token, std::span(routing.expert_ids).subspan(first, top_k));
      standard_normals(inputs.seed, RandomStream::kUniformScores, first, scores);
      make_gates(shape, scores, std::span(routing.gates).subspan(first, top_k));
    }
  }
  inputs.fixed_routing = std::move(routing);
}

}  // namespace

LayerInputs make_synthetic(const WorkloadSpec& spec, const LayerShape& shape, std::uint64_t seed,
                           std::shared_ptr<const ExpertWeights> experts) {
  shape.validate();
  require_room(spec, shape);
  LayerInputs inputs;
  inputs.shape = shape;
  inputs.seed = seed;
  inputs.workload = spec.text;
  const auto& parameters = spec.parameters;
  switch (spec.family) {
    case Family::kGaussian:
      make_gaussian(inputs, parameters[0]);
      break;
    case Family::kZipf:
      make_drift(inputs, parameters[0], 0);
      break;
    case Family::kHot:
      make_hot(inputs, spec);
      break;
    case Family::kClustered:
      make_clustered(inputs, parameters[0], parameters[1]);
      break;
    case Family::kDrift:
      make_drift(inputs, parameters[0], parameters[1]);
      break;
    case Family::kUniform:
      make_uniform(inputs);
      break;
    case Family::kSnapshot:
    case Family::kTrace:
      throw InternalError(fmt::format("{} is not a synthetic workload", spec.text));
  }
  inputs.experts = experts ? std::move(experts) : make_expert_weights(shape, seed);
  return inputs;
}

}  // namespace moescope::detail
