#pragma once

#include <filesystem>
#include <optional>

namespace moescope {

/// A file or folder of the project, "data/devices": under the current directory, else where `cmake --install`
/// put it, ../share/moescope beside the program, else beside the sources this program was built from.
std::optional<std::filesystem::path> project_path(const std::filesystem::path& relative);

}  // namespace moescope
