#include "core/base/build_info.hpp"

#include "build_info_values.hpp"

namespace moescope {

const BuildInfo& build_info() {
  static constexpr BuildInfo kInfo = {MOESCOPE_VERSION,    MOESCOPE_GIT_REVISION,   MOESCOPE_GIT_DIRTY,
                                      MOESCOPE_BUILD_TYPE, MOESCOPE_BUILD_SANITIZE, MOESCOPE_BUILD_ARCH,
                                      MOESCOPE_COMPILER,   MOESCOPE_CUDA_COMPILER,  MOESCOPE_SOURCE_DIR};
  return kInfo;
}

}  // namespace moescope
