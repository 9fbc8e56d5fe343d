#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/layer/stage.hpp"

namespace moescope {

/// One kernel, copy or memset, in seconds after the first of its stage began.
struct KernelRecord {
  std::string name;
  double start_s = 0;
  double end_s = 0;
};

/// What a stage enqueued, in order of start.
struct StageKernels {
  Stage stage = Stage::kLayer;
  std::vector<KernelRecord> kernels;
};

/// Records which kernels some work runs, and when.
class KernelTracer {
 public:
  virtual ~KernelTracer() = default;
  /// Runs `work`, which waits for what it enqueues. Throws CountersUnavailable when kernels cannot be traced.
  virtual std::vector<KernelRecord> trace(const std::function<void()>& work) = 0;
};

}  // namespace moescope
