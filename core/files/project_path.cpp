#include "core/files/project_path.hpp"

#include "core/base/build_info.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {

namespace fs = std::filesystem;

std::optional<fs::path> project_path(const fs::path& relative) {
  std::error_code unknown;  // then the path is empty, and the place the current directory again
  const fs::path program = fs::read_symlink("/proc/self/exe", unknown).parent_path();
  for (const fs::path& folder : {fs::path(), program, program.parent_path() / "share" / "moescope",
                                 fs::path(build_info().source_dir)}) {
    if (fs::path path = folder / relative; file_exists(path)) {
      return path;
    }
  }
  return std::nullopt;
}

}  // namespace moescope
