// experts, schedule sparse_library: the well-kept library's answer. With the routing as a CSR matrix of shape
// [L, N]: S = (X W^T) at the routing's pairs (cuSPARSE SDDMM, fp32), p = gate * sigma(S) (a kernel of ours),
// y = P V (cuSPARSE SpMM, fp32 sums).
#include <cuda_bf16.h>
#include <cusparse.h>

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "core/base/error.hpp"
#include "kernels/device/activation.cuh"
#include "kernels/experts/sparse_library.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

void check_sparse(cusparseStatus_t status, const char* call, int line) {
  if (status != CUSPARSE_STATUS_SUCCESS) {
    throw CudaError(call, cusparseGetErrorString(status), __FILE__, line);
  }
}
#define MOESCOPE_SPARSE_CHECK(call) check_sparse((call), #call, __LINE__)

using Handle = UniqueObject<cusparseHandle_t, cusparseDestroy>;
using Sparse = UniqueObject<cusparseSpMatDescr_t, cusparseDestroySpMat>;
using Dense = UniqueObject<cusparseDnMatDescr_t, cusparseDestroyDnMat>;

constexpr int kThreads = 256;
/// Blocks of the elementwise kernels, which step over what is left: enough to fill any GPU of today.
constexpr std::int64_t kMaxBlocks = 16384;

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMaxBlocks));
}
__device__ __forceinline__ std::int64_t first_index() {
  return static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
__device__ __forceinline__ std::int64_t index_step() {
  return static_cast<std::int64_t>(gridDim.x) * kThreads;
}

/// CSR offsets: every token has top_k pairs.
__global__ void offsets_kernel(std::int32_t* offsets, std::int64_t num_tokens, std::int32_t top_k) {
  for (std::int64_t token = first_index(); token <= num_tokens; token += index_step()) {
    offsets[token] = static_cast<std::int32_t>(token) * top_k;
  }
}

/// fp32 copy of bf16 values, exact; count is a multiple of 2.
__global__ void widen_kernel(const __nv_bfloat162* from, float2* to, std::int64_t pairs) {
  for (std::int64_t i = first_index(); i < pairs; i += index_step()) {
    to[i] = __bfloat1622float2(from[i]);
  }
}

/// p = gate * sigma(S); `p` may be `s` itself.
template <class T>
__global__ void activate_kernel(const float* s, const float* gates, T* p, std::int64_t num_pairs,
                                Activation activation) {
  for (std::int64_t i = first_index(); i < num_pairs; i += index_step()) {
    const float value = gates[i] * activate(activation, s[i]);
    if constexpr (sizeof(T) == 2) {
      p[i] = __float2bfloat16_rn(value);
    } else {
      p[i] = value;
    }
  }
}

bool widens(const LayerShape& shape) { return shape.dtype == Dtype::kBF16; }

void validate_shape(const LayerShape& shape) {
  if (shape.num_pairs() > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("num_tokens * top_k", std::to_string(shape.num_pairs()),
                          "sparse_library takes fewer than 2^31 pairs (32-bit CSR offsets)");
  }
  if (shape.hidden_size % 2 != 0) {
    throw InvalidArgument("hidden_size", std::to_string(shape.hidden_size),
                          "sparse_library needs an even number");
  }
}

}  // namespace

struct SparseLibrary::Impl {
  LayerShape shape;
  const void* hidden_states;
  const float* gates;
  DeviceBuffer<std::int32_t> offsets;       ///< [L+1]
  DeviceBuffer<float> scores;               ///< [L*K]
  DeviceBuffer<__nv_bfloat16> scores_bf16;  ///< [L*K], bf16 storage only
  DeviceBuffer<float> x_f32;                ///< [L,d], bf16 storage only
  DeviceBuffer<float> w_f32;                ///< [N,d], bf16 storage only
  DeviceBuffer<std::byte> sddmm_buffer;
  DeviceBuffer<std::byte> spmm_buffer;
  Handle handle;
  Dense x;
  Dense w_transposed;
  Sparse sampled;  ///< S, fp32
  Sparse p;        ///< P, storage dtype
  Dense v;
  Dense y;

  void sddmm_arguments(auto&& call) const {
    const float one = 1;
    const float zero = 0;
    MOESCOPE_SPARSE_CHECK(call(handle.get(), CUSPARSE_OPERATION_NON_TRANSPOSE,
                               CUSPARSE_OPERATION_NON_TRANSPOSE, &one, x.get(), w_transposed.get(), &zero,
                               sampled.get(), CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT));
  }
  void spmm_arguments(auto&& call) const {
    const float one = 1;
    const float zero = 0;
    MOESCOPE_SPARSE_CHECK(call(handle.get(), CUSPARSE_OPERATION_NON_TRANSPOSE,
                               CUSPARSE_OPERATION_NON_TRANSPOSE, &one, p.get(), v.get(), &zero, y.get(),
                               CUDA_R_32F, CUSPARSE_SPMM_CSR_ALG2));
  }
};

std::int64_t SparseLibrary::memory_bytes(const LayerShape& shape) {
  const std::int64_t csr = (shape.num_tokens + 1) * 4 + shape.num_pairs() * 4;
  const std::int64_t copies =
      shape.num_pairs() * 2 + (shape.num_tokens + shape.num_experts()) * shape.hidden_size * 4;
  return csr + (widens(shape) ? copies : 0);
}

SparseLibrary::SparseLibrary(const LayerShape& shape, const void* hidden_states, const DeviceWeights& weights,
                             DeviceRouting routing, float* y, cudaStream_t stream) {
  validate_shape(shape);
  impl_ = std::make_unique<Impl>();
  Impl& s = *impl_;
  s.shape = shape;
  s.hidden_states = hidden_states;
  s.gates = routing.gates;
  const std::int64_t d = shape.hidden_size;
  const std::int64_t num_tokens = shape.num_tokens;
  const std::int64_t num_experts = shape.num_experts();
  const std::int64_t num_pairs = shape.num_pairs();
  s.offsets = DeviceBuffer<std::int32_t>(num_tokens + 1);
  s.scores = DeviceBuffer<float>(num_pairs);
  offsets_kernel<<<blocks_for(num_tokens + 1), kThreads, 0, stream>>>(s.offsets.get(), num_tokens,
                                                                      static_cast<std::int32_t>(shape.top_k));
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  void* x = const_cast<void*>(hidden_states);
  void* w = const_cast<void*>(weights.w_in);
  void* p = s.scores.get();
  cudaDataType_t storage = CUDA_R_32F;
  if (widens(shape)) {
    storage = CUDA_R_16BF;
    s.scores_bf16 = DeviceBuffer<__nv_bfloat16>(num_pairs);
    s.x_f32 = DeviceBuffer<float>(num_tokens * d);
    s.w_f32 = DeviceBuffer<float>(num_experts * d);
    const std::int64_t pairs = num_experts * d / 2;
    widen_kernel<<<blocks_for(pairs), kThreads, 0, stream>>>(static_cast<const __nv_bfloat162*>(weights.w_in),
                                                             reinterpret_cast<float2*>(s.w_f32.get()), pairs);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
    x = s.x_f32.get();
    w = s.w_f32.get();
    p = s.scores_bf16.get();
  }

  MOESCOPE_SPARSE_CHECK(cusparseCreate(s.handle.out()));
  MOESCOPE_SPARSE_CHECK(cusparseSetStream(s.handle.get(), stream));
  MOESCOPE_SPARSE_CHECK(cusparseCreateDnMat(s.x.out(), num_tokens, d, d, x, CUDA_R_32F, CUSPARSE_ORDER_ROW));
  // W [N,d] by rows is W^T [d,N] by columns.
  MOESCOPE_SPARSE_CHECK(
      cusparseCreateDnMat(s.w_transposed.out(), d, num_experts, d, w, CUDA_R_32F, CUSPARSE_ORDER_COL));
  MOESCOPE_SPARSE_CHECK(cusparseCreateCsr(
      s.sampled.out(), num_tokens, num_experts, num_pairs, s.offsets.get(), routing.expert_ids,
      s.scores.get(), CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, CUDA_R_32F));
  MOESCOPE_SPARSE_CHECK(cusparseCreateCsr(s.p.out(), num_tokens, num_experts, num_pairs, s.offsets.get(),
                                          routing.expert_ids, p, CUSPARSE_INDEX_32I, CUSPARSE_INDEX_32I,
                                          CUSPARSE_INDEX_BASE_ZERO, storage));
  MOESCOPE_SPARSE_CHECK(cusparseCreateDnMat(s.v.out(), num_experts, d, d, const_cast<void*>(weights.w_out),
                                            storage, CUSPARSE_ORDER_ROW));
  MOESCOPE_SPARSE_CHECK(cusparseCreateDnMat(s.y.out(), num_tokens, d, d, y, CUDA_R_32F, CUSPARSE_ORDER_ROW));

  std::size_t sddmm_bytes = 0;
  std::size_t spmm_bytes = 0;
  s.sddmm_arguments([&](auto... a) { return cusparseSDDMM_bufferSize(a..., &sddmm_bytes); });
  s.spmm_arguments([&](auto... a) { return cusparseSpMM_bufferSize(a..., &spmm_bytes); });
  s.sddmm_buffer = DeviceBuffer<std::byte>(static_cast<std::int64_t>(sddmm_bytes));
  s.spmm_buffer = DeviceBuffer<std::byte>(static_cast<std::int64_t>(spmm_bytes));
}
SparseLibrary::SparseLibrary(SparseLibrary&&) noexcept = default;
SparseLibrary& SparseLibrary::operator=(SparseLibrary&&) noexcept = default;
SparseLibrary::~SparseLibrary() = default;

std::int64_t SparseLibrary::bytes() const {
  return memory_bytes(impl_->shape) + impl_->sddmm_buffer.bytes() + impl_->spmm_buffer.bytes();
}

void SparseLibrary::launch(cudaStream_t stream) {
  const StageRange range(Stage::kExperts);
  const Impl& s = *impl_;
  MOESCOPE_SPARSE_CHECK(cusparseSetStream(s.handle.get(), stream));
  const std::int64_t num_pairs = s.shape.num_pairs();
  if (widens(s.shape)) {
    const std::int64_t pairs = s.shape.num_tokens * s.shape.hidden_size / 2;
    widen_kernel<<<blocks_for(pairs), kThreads, 0, stream>>>(
        static_cast<const __nv_bfloat162*>(s.hidden_states), reinterpret_cast<float2*>(s.x_f32.get()), pairs);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
  }
  s.sddmm_arguments([&](auto... a) { return cusparseSDDMM(a..., s.sddmm_buffer.get()); });
  if (widens(s.shape)) {
    activate_kernel<<<blocks_for(num_pairs), kThreads, 0, stream>>>(
        s.scores.get(), s.gates, s.scores_bf16.get(), num_pairs, s.shape.activation);
  } else {
    activate_kernel<<<blocks_for(num_pairs), kThreads, 0, stream>>>(s.scores.get(), s.gates, s.scores.get(),
                                                                    num_pairs, s.shape.activation);
  }
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  s.spmm_arguments([&](auto... a) { return cusparseSpMM(a..., s.spmm_buffer.get()); });
}

}  // namespace moescope::cuda
