#include "kernels/runtime/tensor_map.hpp"

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <array>

#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// Through the runtime, so that a program without a driver still starts.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  MOESCOPE_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess || function == nullptr) {
    throw NoDevice("the driver knows no tensor maps (cuTensorMapEncodeTiled)");
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap make_strip_map(const void* weights, std::int64_t grid_rows, std::int64_t grid_cols,
                           std::int64_t hidden_size, StripKind kind, int experts) {
  static const Encode encode = find_encode();
  const auto row_bytes = static_cast<cuuint64_t>(hidden_size) * 2;
  const std::array<cuuint64_t, 3> extents = {static_cast<cuuint64_t>(hidden_size),
                                             static_cast<cuuint64_t>(grid_cols),
                                             static_cast<cuuint64_t>(grid_rows)};
  const std::array<cuuint64_t, 2> strides = {row_bytes, row_bytes * static_cast<cuuint64_t>(grid_cols)};
  const auto length = static_cast<cuuint32_t>(experts);
  const std::array<cuuint32_t, 3> box = {64, kind == StripKind::kRow ? length : 1,
                                         kind == StripKind::kCol ? length : 1};
  const std::array<cuuint32_t, 3> steps = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(weights),
                                 extents.data(), strides.data(), box.data(), steps.data(),
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw CudaError("cuTensorMapEncodeTiled",
                    fmt::format("CUresult {} for [{}, {}, {}]", static_cast<int>(result), grid_rows,
                                grid_cols, hidden_size),
                    __FILE__, __LINE__);
  }
  return map;
}

}  // namespace moescope::cuda
