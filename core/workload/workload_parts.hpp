#pragma once

#include <cstdint>
#include <vector>

#include "core/layer/layer_shape.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/tensor.hpp"
#include "core/workload/deterministic_math.hpp"
#include "core/workload/workload.hpp"

/// What synthetic workloads of OmniMoE and of the baselines are made of; not for use outside core/.
namespace moescope::detail {

/// One element, rounded to the tensor's storage.
void set_element(HostTensor& tensor, std::int64_t row, std::int64_t col, float value);

/// Bias -S ln(rank_i) for `count` rows or columns, ranks 1..count in random order, moved on by `step`.
/// Ranks lie on a ring of `count` places: 1, 3, 5, ... to one side of its head and 2, 4, 6, ... to the other;
/// an item at signed distance t from the head, on a head at -1/4, has rank 2 |t| + 1/2. The head moves count
/// / period places a step, so ranks change continuously: nothing jumps from unpopular to popular.
std::vector<float> popularity_bias(std::int64_t count, double exponent, double step, std::uint64_t seed,
                                   RandomStream stream);

/// `boost` for `hot` of `count` rows or columns, picked at random; 0 for the others.
std::vector<float> hot_boosts(std::int64_t count, std::int64_t hot, double boost, std::uint64_t seed,
                              RandomStream stream);

/// Feature 0 of every token becomes a flag: 1 for exactly round(FRACTION L) tokens picked at random, 0 for
/// the others.
void flag_hot_tokens(HostTensor& hidden_states, double fraction, std::uint64_t seed);

/// X_t = sqrt(RHO) centre + sqrt(1 - RHO) noise [L,d], both N(0, 1); a token's cluster is uniform in C.
HostTensor clustered_tokens(Dtype dtype, std::int64_t num_tokens, std::int64_t hidden_size, double clusters,
                            double correlation, std::uint64_t seed);

/// Every token of `shape` draws top_k distinct experts of all with equal chance; gates from N(0, 1) scores by
/// its gate mode. Throws OutOfMemory before it begins.
Routing uniform_routing(const LayerShape& shape, std::uint64_t seed);

/// Throws InvalidArgument when hot:FRACTION,COUNT asks for more than `most` rows or columns; `what` names
/// them.
void require_hot_room(const WorkloadSpec& spec, std::int64_t most, std::string_view what);

}  // namespace moescope::detail
