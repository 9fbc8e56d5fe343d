#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// `count` elements of device memory, once `stream` is done with what was put on it before.
template <class T>
std::vector<T> copy_to_host(const T* device, std::int64_t count, cudaStream_t stream) {
  std::vector<T> host(static_cast<std::size_t>(count));
  if (count > 0) {
    MOESCOPE_CUDA_CHECK(
        cudaMemcpyAsync(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost, stream));
    MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
  }
  return host;
}

}  // namespace moescope::cuda
