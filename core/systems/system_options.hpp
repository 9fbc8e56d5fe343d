#pragma once

#include <span>
#include <string_view>

#include "core/systems/system.hpp"

namespace moescope {

/// Options of the command line, and axes of experiments, that only some kinds of layer have. Throws
/// InvalidArgument(option, value, ...), which names those that do, when `option` is one of them ("heads")
/// and none of `systems` has it.
void require_system_has(std::span<const System> systems, std::string_view option, std::string_view value);
/// The same of one system, asked for without a value: true for options that every kind has.
bool system_has(System system, std::string_view option);

}  // namespace moescope
