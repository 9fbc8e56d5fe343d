#pragma once

#include "core/backend/moe_backend.hpp"
#include "core/systems/system.hpp"
#include "experiments/options/options.hpp"

namespace moescope {

/// --system, and the extents that only baselines have.
void add_system_options(Cli app, CommonOptions& options);

/// The one kind of layer asked for. Throws InvalidArgument for several.
System chosen_system(const CommonOptions& options);
/// Throws InvalidArgument for an option that none of the systems asked for has.
void require_meaningful(const CommonOptions& options);
/// The baseline asked for: its preset (default: small) with what else was given; what only other systems have
/// is left aside. What a workload's file records comes from there unless a preset or option asks for it.
/// Throws InvalidArgument, FileError.
SystemShape resolve_system(const CommonOptions& options, System system, const WorkloadSpec& spec);
/// The one workload of layers of different kinds; gaussian:1 when none was asked for. Throws InvalidArgument.
NamedWorkload system_workload(const CommonOptions& options);
/// The orders of work asked for that `system` has; auto where none was meant for it, or it has no choice.
/// Throws InvalidArgument for one that neither it nor omnimoe beside it has.
std::vector<ScheduleOptions> baseline_schedules(const CommonOptions& options, System system);
/// Its inputs, of options.seed and the first of baseline_schedules(). Throws InvalidArgument, FileError,
/// OutOfMemory.
SystemInputs make_system_inputs(const NamedWorkload& workload, const SystemShape& shape,
                                const CommonOptions& options);

/// Runs the router alone, or takes the routing that is fixed: a row for each query.
Routing route_system(MoeBackend& backend, const SystemInputs& inputs);

}  // namespace moescope
