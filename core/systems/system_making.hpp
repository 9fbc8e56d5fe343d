#pragma once

#include <cstdint>
#include <memory>

#include "core/files/safetensors.hpp"
#include "core/systems/system.hpp"
#include "core/workload/workload.hpp"

/// What workloads of the baselines are made of; not for use outside core/.
namespace moescope::detail {

/// Throws OutOfMemory unless host memory holds the layer's weights and batch.
void require_system_memory(const SystemShape& shape);

/// X ~ N(0, 1), [L,d].
HostTensor normal_tokens(const SystemShape& shape, std::uint64_t seed);

/// Weights as make_system_inputs() says. Without `experts` those of experts and dense branch have their
/// extents and no values: routing does not depend on them.
std::shared_ptr<SystemWeights> make_system_weights(const SystemShape& shape, double score_deviation,
                                                   std::uint64_t seed, bool experts = true);

/// system_snapshot.cpp: what `file`, read from spec.path, holds. Zeros in `requested` are completed from it.
SystemShape complete_system_snapshot(const ArrayFile& file, const WorkloadSpec& spec,
                                     const SystemShape& requested);
/// Consumes the file: each array is dropped once it is converted.
SystemInputs make_system_snapshot(ArrayFile file, const WorkloadSpec& spec, const SystemShape& requested,
                                  std::uint64_t seed);

/// system_trace.cpp, likewise.
SystemShape complete_system_trace(const ArrayFile& file, const WorkloadSpec& spec,
                                  const SystemShape& requested);
SystemInputs make_system_trace(ArrayFile file, const WorkloadSpec& spec, const SystemShape& requested,
                               std::uint64_t seed, bool experts = true);

}  // namespace moescope::detail
