#pragma once

#include <filesystem>
#include <optional>

namespace moescope {

/// A file or folder of the project, "data/devices": under the current directory, else beside the sources this
/// program was built from, else where `cmake --install` put it, ../share/moescope beside the program.
std::optional<std::filesystem::path> project_path(const std::filesystem::path& relative);

}  // namespace moescope
