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

CUtensorMap make_box_map(const BoxMap& map) {
  static const Encode encode = find_encode();
  std::array<cuuint64_t, 3> extents{};
  std::array<cuuint32_t, 3> box{};
  for (std::size_t i = 0; i < extents.size(); ++i) {
    extents[i] = static_cast<cuuint64_t>(map.extents[i]);
    box[i] = static_cast<cuuint32_t>(map.box[i]);
  }
  const std::array<cuuint64_t, 2> strides = {static_cast<cuuint64_t>(map.strides[0]),
                                             static_cast<cuuint64_t>(map.strides[1])};
  const std::array<cuuint32_t, 3> steps = {1, 1, 1};
  CUtensorMap result;
  const CUresult code = encode(
      &result, map.dtype == Dtype::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
      3, const_cast<void*>(map.memory), extents.data(), strides.data(), box.data(), steps.data(),
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (code != CUDA_SUCCESS) {
    throw CudaError(
        "cuTensorMapEncodeTiled",
        fmt::format("CUresult {} for [{}, {}, {}], strides {} and {} bytes", static_cast<int>(code),
                    map.extents[2], map.extents[1], map.extents[0], map.strides[1], map.strides[0]),
        __FILE__, __LINE__);
  }
  return result;
}

CUtensorMap make_strip_map(const void* weights, std::int64_t grid_rows, std::int64_t grid_cols,
                           std::int64_t hidden_size, StripKind kind, int experts, Dtype dtype) {
  const std::int64_t row_bytes = hidden_size * dtype_bytes(dtype);
  return make_box_map({.memory = weights,
                       .dtype = dtype,
                       .extents = {hidden_size, grid_cols, grid_rows},
                       .strides = {row_bytes, row_bytes * grid_cols},
                       .box = {128 / dtype_bytes(dtype), kind == StripKind::kRow ? experts : 1,
                               kind == StripKind::kCol ? experts : 1}});
}

}  // namespace moescope::cuda
