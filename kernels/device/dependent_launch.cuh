#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "kernels/runtime/cuda_raii.hpp"

/// Programmatic dependent launch (CUDA programming guide): a kernel's blocks may be scheduled while the
/// kernel before it on the stream is still running, so that launch and set-up cost no time of their own. Such
/// a kernel must call wait_for_predecessor() before it reads or writes anything that an earlier kernel of the
/// layer touches.
namespace moescope::cuda {

/// Blocks until the kernel before has finished and its writes are visible; at once when this kernel was
/// launched without the attribute.
__device__ __forceinline__ void wait_for_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernel after this one be scheduled from now on, where there is room for its blocks.
__device__ __forceinline__ void release_successor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes = 0;
  unsigned cluster_blocks = 1;
};

/// Launches `kernel`, which calls wait_for_predecessor(), as a dependent of the kernel before it on `stream`.
template <class... Parameters, class... Arguments>
void launch_dependent(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                      Arguments&&... arguments) {
  std::array<cudaLaunchAttribute, 2> attributes{};
  unsigned count = 0;
  attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  if (shape.cluster_blocks > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim = {shape.cluster_blocks, 1, 1};
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  config.attrs = attributes.data();
  config.numAttrs = count;
  MOESCOPE_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

}  // namespace moescope::cuda
