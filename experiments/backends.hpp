#pragma once

#include <memory>
#include <string>

#include "core/moe_backend.hpp"

namespace moescope {

/// "cpu": the reference backend; "cuda": the GPU. Throws InvalidArgument("backend", ...) for other names and
/// NoDevice when there is no GPU that can be used or this build has no code for one.
std::unique_ptr<MoeBackend> make_backend(const std::string& name);

}  // namespace moescope
