#pragma once

#include <cuda_runtime_api.h>

#include "capi/gpu/gpu.hpp"
#include "core/base/gpu_traits.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::capi::gpu {

/// The execution's device, current while this lives. Throws Failure (value) for an index that is none,
/// (device) where there is no device.
class CurrentDevice {
 public:
  explicit CurrentDevice(const moescope_execution& execution);
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice();
  const GpuTraits& traits() const { return *traits_; }

 private:
  int before_ = 0;
  int own_ = 0;
  const GpuTraits* traits_ = nullptr;
};

inline cudaStream_t stream_of(const moescope_execution& execution) {
  return static_cast<cudaStream_t>(execution.stream);
}

/// This thread's cuBLASLt of the current device, with the execution's handle (null: one made on first use)
/// and this workspace. It remembers the algorithms that were chosen.
cuda::CublasLt& blas_of(const moescope_execution& execution, void* workspace, std::int64_t workspace_bytes);

/// Work beside a stream: what is enqueued on stream() between fork() and join() runs beside it. One for each
/// thread and device, made on first use. CUDA graphs capture both branches.
class Beside {
 public:
  static Beside& of_current_device(const moescope_execution& execution);
  Beside();
  cudaStream_t stream() const { return side_; }
  void fork(cudaStream_t from) const;
  /// `to` goes on when both are done.
  void join(cudaStream_t to) const;

 private:
  cudaStream_t side_ = nullptr;
  cudaEvent_t forked_ = nullptr;
  cudaEvent_t done_ = nullptr;
};

/// Runs `body`; what the kernels' launchers throw becomes a Failure.
template <class Body>
void launching(const Body& body);

/// The one Failure that stands for the exception in flight.
[[noreturn]] void rethrow_as_failure();

template <class Body>
void launching(const Body& body) {
  try {
    body();
  } catch (...) {
    rethrow_as_failure();
  }
}

}  // namespace moescope::capi::gpu
