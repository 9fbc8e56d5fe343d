#pragma once

#include <cstdint>

#include "core/systems/system.hpp"
#include "core/workload/workload.hpp"

namespace moescope {

/// A baseline's shape as the workload's file dictates it: `requested` extents equal to 0 are taken from the
/// file, others must fit (fewer tokens than recorded may be asked for). A trace says how many tokens, experts
/// and experts per token there are; a snapshot also how wide everything is. Synthetic families return
/// `requested` unchanged. Throws InvalidArgument, FileError.
SystemShape complete_shape(const WorkloadSpec& spec, const SystemShape& requested);

/// Throws InvalidArgument when the router is too small for a synthetic family's arguments, or its sub-keys
/// too narrow.
void require_room(const WorkloadSpec& spec, const SystemShape& shape);

/// A baseline's tokens, weights and, for uniform and trace, routing under any workload. A flat router is a
/// grid of one row, so that what a family says of columns is said of experts; product keys are a grid of
/// sqrt(N) x sqrt(N) with a row per head and token, and all heads prefer the same sub-keys. A family's bias
/// or boost is a feature of the tokens: feature 0 is 1 (for hot: a flag), its weight in the router what is
/// added to the logit; of product keys the query carries it as (f, -f) and the sub-key as (b, -b) / 2, which
/// the layer norm of pkm keeps up to its scale. dense_mlp, which routes nothing, has the tokens alone.
/// `shape` is completed from the file first. Bit-identical on every machine for one (spec, shape, seed).
/// Throws InvalidArgument, FileError, and OutOfMemory before making anything.
SystemInputs make_workload(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed);
/// The same for those who want its routing alone: weights that routing does not depend on are not filled
/// (those of a snapshot are as recorded).
SystemInputs make_routing_workload(const WorkloadSpec& spec, const SystemShape& shape, std::uint64_t seed);

}  // namespace moescope
