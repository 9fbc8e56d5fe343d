#pragma once

#include <memory>
#include <string>

#include "core/backend/ceiling_probe.hpp"
#include "core/backend/moe_backend.hpp"

namespace moescope {

/// "cpu": the reference backend; "cuda": the GPU. Throws InvalidArgument("backend", ...) for other names and
/// NoDevice when there is no GPU that can be used or this build has no code for one.
std::unique_ptr<MoeBackend> make_backend(const std::string& name);
/// What measures the ceilings of that backend's device; throws the same.
CeilingProbes make_ceiling_probes(const std::string& backend);

}  // namespace moescope
