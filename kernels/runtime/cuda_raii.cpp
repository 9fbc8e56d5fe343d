#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

void check(cudaError_t result, const char* call, const char* file, int line) {
  if (result != cudaSuccess) {
    throw CudaError(call, fmt::format("{}: {}", cudaGetErrorName(result), cudaGetErrorString(result)), file,
                    line);
  }
}

}  // namespace moescope::cuda
