// PEER's experts and PKM's combine in the dense masked form: every expert for every token, the gates of all
// heads in one matrix. The parts of P V are added up here and rounded to storage.
#include <cuda_bf16.h>

#include <algorithm>

#include "core/tiling/tile_config.hpp"
#include "kernels/contract/system_launch.hpp"
#include "kernels/experts/dense_masked.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kBlocksPerSm = 8;

/// output[i] = the sum of parts[p][i], p ascending, in groups of 4 values (d is a multiple of 8).
template <class Output>
__global__ void __launch_bounds__(kThreads)
    sum_parts(const float4* parts, std::int64_t num_parts, Output* output, std::int64_t count4) {
  const std::int64_t stride = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count4; i += stride) {
    float4 sum = parts[i];
    for (std::int64_t p = 1; p < num_parts; ++p) {
      const float4 more = parts[p * count4 + i];
      sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
    }
    if constexpr (sizeof(Output) == sizeof(uint2)) {
      const __nv_bfloat162 low = __floats2bfloat162_rn(sum.x, sum.y);
      const __nv_bfloat162 high = __floats2bfloat162_rn(sum.z, sum.w);
      output[i] =
          make_uint2(*reinterpret_cast<const unsigned*>(&low), *reinterpret_cast<const unsigned*>(&high));
    } else {
      output[i] = sum;
    }
  }
}

std::int64_t sums_offset(const DenseMasked& masked) { return round_up(masked.chunks().bytes, 256); }

DenseMasked masked_form(const SystemShape& shape, const GpuTraits& gpu) {
  DenseMasked masked;
  masked.shape = shape.row_shape();
  masked.shape.top_k = shape.top_k_per_query();
  masked.lists = shape.heads;
  masked.scored = shape.system == System::kPeer;
  masked.parts = DenseSplits::count(gpu, shape.num_tokens, shape.hidden_size,
                                    std::min(masked.chunks().experts, shape.num_experts));
  return masked;
}

}  // namespace

std::int64_t masked_product_keys_workspace_bytes(const SystemShape& shape, const GpuTraits& gpu) {
  const DenseMasked masked = masked_form(shape, gpu);
  return sums_offset(masked) + masked.parts * shape.num_tokens * shape.hidden_size * dtype_bytes(Dtype::kF32);
}

void launch_masked_product_keys(CublasLt& blas, const SystemShape& shape, const void* hidden_states,
                                const DeviceWeights& weights, DeviceRouting routing, void* workspace,
                                void* output, cudaStream_t stream) {
  const StageRange range(shape.system == System::kPeer ? Stage::kExperts : Stage::kExpertCombine);
  const GpuTraits& gpu = current_gpu();
  const DenseMasked masked = masked_form(shape, gpu);
  void* const sums = static_cast<std::byte*>(workspace) + sums_offset(masked);
  launch_dense_masked(blas, masked, hidden_states, weights, routing, workspace, static_cast<float*>(sums),
                      stream);
  const std::int64_t count4 = shape.num_tokens * shape.hidden_size / 4;
  const auto blocks =
      static_cast<unsigned>(std::min((count4 + kThreads - 1) / kThreads, kBlocksPerSm * gpu.num_sms));
  const auto* const parts = static_cast<const float4*>(sums);
  if (shape.dtype == Dtype::kBF16) {
    sum_parts<<<blocks, kThreads, 0, stream>>>(parts, masked.parts, static_cast<uint2*>(output), count4);
  } else {
    sum_parts<<<blocks, kThreads, 0, stream>>>(parts, masked.parts, static_cast<float4*>(output), count4);
  }
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
