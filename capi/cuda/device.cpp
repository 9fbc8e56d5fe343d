#include "capi/cuda/device.hpp"

#include <map>
#include <string>

#include "capi/base/failure.hpp"
#include "core/base/error.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"

namespace moescope::capi::gpu {

CurrentDevice::CurrentDevice(const moescope_execution& execution) : own_(execution.device_index) {
  int count = 0;
  if (const cudaError_t result = cudaGetDevice(&before_); result != cudaSuccess) {
    (void)cudaGetLastError();
    throw Failure(MOESCOPE_ERROR_DEVICE,
                  std::string("device: no CUDA device can be used: ") + cudaGetErrorString(result));
  }
  if (own_ != before_) {
    MOESCOPE_CUDA_CHECK(cudaGetDeviceCount(&count));
    if (own_ < 0 || own_ >= count) {
      refuse("device_index", std::to_string(own_), "must be in [0, " + std::to_string(count) + ")");
    }
    MOESCOPE_CUDA_CHECK(cudaSetDevice(own_));
  }
  traits_ = &cuda::current_gpu();
}

CurrentDevice::~CurrentDevice() {
  if (own_ != before_) {
    (void)cudaSetDevice(before_);
  }
}

cuda::CublasLt& blas_of(const moescope_execution& execution, void* workspace, std::int64_t workspace_bytes) {
  // Left alone at the thread's end: by then the driver may be gone.
  thread_local auto* const of_device = new std::map<int, cuda::CublasLt>;
  const auto found = of_device->try_emplace(execution.device_index, std::int64_t{0}).first;
  found->second.borrow(execution.blas, workspace, workspace_bytes);
  return found->second;
}

Beside& Beside::of_current_device(const moescope_execution& execution) {
  thread_local auto* const of_device = new std::map<int, Beside>;  // left alone, as above
  return of_device->try_emplace(execution.device_index).first->second;
}

Beside::Beside() {
  MOESCOPE_CUDA_CHECK(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
  MOESCOPE_CUDA_CHECK(cudaEventCreateWithFlags(&forked_, cudaEventDisableTiming));
  MOESCOPE_CUDA_CHECK(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
}

void Beside::fork(cudaStream_t from) const {
  MOESCOPE_CUDA_CHECK(cudaEventRecord(forked_, from));
  MOESCOPE_CUDA_CHECK(cudaStreamWaitEvent(side_, forked_));
}

void Beside::join(cudaStream_t to) const {
  MOESCOPE_CUDA_CHECK(cudaEventRecord(done_, side_));
  MOESCOPE_CUDA_CHECK(cudaStreamWaitEvent(to, done_));
}

void rethrow_as_failure() {
  try {
    throw;
  } catch (const Failure&) {
    throw;
  } catch (const InvalidArgument& error) {  // what a kernel cannot take, as its launcher says it
    throw Failure(MOESCOPE_ERROR_UNSUPPORTED, error.what());
  } catch (const cuda::CudaError& error) {
    (void)cudaGetLastError();  // it is reported: the thread's next call starts anew
    throw Failure(MOESCOPE_ERROR_DEVICE, error.what());
  } catch (const NoDevice& error) {
    throw Failure(MOESCOPE_ERROR_DEVICE, error.what());
  }
}

}  // namespace moescope::capi::gpu
