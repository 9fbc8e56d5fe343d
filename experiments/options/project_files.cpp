#include "experiments/options/project_files.hpp"

#include <system_error>

#include "core/base/build_info.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {

namespace fs = std::filesystem;

std::optional<fs::path> project_path(const fs::path& relative) {
  std::error_code unknown;  // then there is no such folder
  const fs::path program = fs::read_symlink("/proc/self/exe", unknown);
  for (const fs::path& folder : {fs::path(), program.parent_path().parent_path() / "share" / "moescope",
                                 fs::path(build_info().source_dir)}) {
    if (const fs::path path = folder / relative; file_exists(path)) {
      return path;
    }
  }
  return std::nullopt;
}

}  // namespace moescope
