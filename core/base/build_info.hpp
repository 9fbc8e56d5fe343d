#pragma once

#include <string_view>

namespace moescope {

/// What this binary was built from. Regenerated at every build.
struct BuildInfo {
  std::string_view version;
  std::string_view git_revision;  ///< full hash, or "unknown"
  bool git_dirty;
  std::string_view build_type;
  std::string_view sanitize;
  std::string_view arch;
  std::string_view compiler;
  std::string_view cuda_compiler;  ///< empty without CUDA
  std::string_view source_dir;     ///< the checkout; only for finding data/ beside it
};

const BuildInfo& build_info();

}  // namespace moescope
