#pragma once

#include <memory>
#include <optional>
#include <string>

#include "core/backend/ceiling_probe.hpp"
#include "core/backend/moe_backend.hpp"
#include "core/base/error.hpp"

namespace moescope {

/// "cpu": the reference backend; "cuda": the GPU. Throws InvalidArgument("backend", ...) for other names and
/// NoDevice when there is no GPU that can be used or this build has no code for one.
std::unique_ptr<MoeBackend> make_backend(const std::string& name);
/// In a process that a launcher (torchrun, mpirun, srun) or rank 0 has started as a rank other than 0 of a
/// layer on several GPUs, and whose arguments name --ranks: does that rank's work until rank 0 ends, and
/// returns its exit code. Nothing in any other process. Throws Error (kUsage) where launchers contradict each
/// other, NoDevice.
std::optional<ExitCode> serve_as_rank(int argc, const char* const* argv);
/// What measures the ceilings of that backend's device; throws the same.
CeilingProbes make_ceiling_probes(const std::string& backend);

}  // namespace moescope
