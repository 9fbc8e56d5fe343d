#include "kernels/runtime/kernel_attributes.hpp"

#include <map>
#include <mutex>
#include <utility>

#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

const cudaFuncAttributes& kernel_attributes(const void* kernel) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, cudaFuncAttributes> known;
  int device = 0;
  MOESCOPE_CUDA_CHECK(cudaGetDevice(&device));
  const std::scoped_lock lock(mutex);
  const auto found = known.find({device, kernel});
  if (found != known.end()) {
    return found->second;
  }
  cudaFuncAttributes attributes{};
  MOESCOPE_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
  return known.emplace(std::pair(device, kernel), attributes).first->second;
}

}  // namespace moescope::cuda
