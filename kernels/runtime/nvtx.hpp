#pragma once

#include <nvtx3/nvToolsExt.h>

#include "core/layer/stage.hpp"

namespace moescope::cuda {

/// NVTX range around the launches of one stage, named as the stage is everywhere else. Host side only: it
/// marks the time in which the stage is enqueued; profilers project it onto the kernels.
class StageRange {
 public:
  explicit StageRange(Stage stage) { (void)nvtxRangePushA(to_string(stage).data()); }
  StageRange(const StageRange&) = delete;
  StageRange& operator=(const StageRange&) = delete;
  ~StageRange() { (void)nvtxRangePop(); }
};

}  // namespace moescope::cuda
