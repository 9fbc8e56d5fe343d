#pragma once

#include <filesystem>
#include <optional>

namespace moescope {

/// A file or folder of the project ("data/devices"): under the current directory, else beside this program
/// (scripts/bundle.sh), else where `cmake --install` puts it, ../share/moescope beside the program, else in
/// the checkout that it was built from. None when it stands nowhere. Throws nothing.
std::optional<std::filesystem::path> project_path(const std::filesystem::path& relative);

}  // namespace moescope
