#include "kernels/runtime/cublas_lt.hpp"

#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>

#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

void check_blas(cublasStatus_t status, const char* call, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw CudaError(call, cublasLtGetStatusString(status), __FILE__, line);
  }
}
#define MOESCOPE_BLAS_CHECK(call) check_blas((call), #call, __LINE__)

using Handle = UniqueObject<cublasLtHandle_t, cublasLtDestroy>;
using Operation = UniqueObject<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = UniqueObject<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = UniqueObject<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  MOESCOPE_BLAS_CHECK(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value));
}
template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  MOESCOPE_BLAS_CHECK(
      cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value));
}

cudaDataType_t cuda_type(Dtype dtype) { return dtype == Dtype::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

template <class T>
void set(const Layout& layout, cublasLtMatrixLayoutAttribute_t attribute, T value) {
  MOESCOPE_BLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout.get(), attribute, &value, sizeof value));
}

/// Largest power of two up to 256 (cuBLASLt's own default assumption) that divides the addresses of all of a
/// batch's matrices.
std::uint32_t alignment(const void* pointer, std::int64_t stride, Dtype dtype) {
  const auto address = std::bit_cast<std::uintptr_t>(pointer) |
                       static_cast<std::uintptr_t>(stride * dtype_bytes(dtype)) | std::uintptr_t{256};
  return static_cast<std::uint32_t>(std::uintptr_t{1} << std::countr_zero(address));
}

/// Everything the choice of an algorithm depends on.
using Key = std::array<std::int64_t, 20>;

Gemm with_leading_dimensions(Gemm gemm) {
  const auto complete = [](std::int64_t& leading, std::int64_t dense, std::string_view field) {
    leading = leading == 0 ? dense : leading;
    if (leading < dense) {
      throw InvalidArgument(field, std::to_string(leading), fmt::format("at least the row length {}", dense));
    }
  };
  const std::array<std::pair<std::string_view, std::int64_t>, 4> extents{
      {{"gemm.m", gemm.m}, {"gemm.n", gemm.n}, {"gemm.k", gemm.k}, {"gemm.batch", gemm.batch}}};
  for (const auto& [field, value] : extents) {
    if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) {
      throw InvalidArgument(field, std::to_string(value), "in [1, 2^31)");
    }
  }
  complete(gemm.lda, gemm.transpose_a ? gemm.m : gemm.k, "gemm.lda");
  complete(gemm.ldb, gemm.transpose_b ? gemm.k : gemm.n, "gemm.ldb");
  complete(gemm.ldd, gemm.n, "gemm.ldd");
  return gemm;
}

}  // namespace

struct CublasLt::Impl {
  Handle handle;
  DeviceBuffer<std::byte> owned;
  cublasLtHandle_t in_use = nullptr;
  void* workspace = nullptr;
  std::int64_t workspace_bytes = 0;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms;
};

std::int64_t CublasLt::workspace_bytes(std::int64_t num_tokens) {
  constexpr std::int64_t kFewTokens = 512;  // 4 tiles of 128: with 8 of columns, a quarter of a large GPU
  return num_tokens <= kFewTokens ? kWorkspaceBytes : 0;
}

CublasLt::CublasLt(std::int64_t workspace_bytes) : impl_(std::make_unique<Impl>()) {
  impl_->owned = DeviceBuffer<std::byte>(workspace_bytes);
  MOESCOPE_BLAS_CHECK(cublasLtCreate(impl_->handle.out()));
  borrow(nullptr, impl_->owned.get(), workspace_bytes);
}
CublasLt::CublasLt(CublasLt&&) noexcept = default;
CublasLt& CublasLt::operator=(CublasLt&&) noexcept = default;
CublasLt::~CublasLt() = default;

void CublasLt::borrow(void* handle, void* workspace, std::int64_t workspace_bytes) {
  impl_->in_use = handle != nullptr ? static_cast<cublasLtHandle_t>(handle) : impl_->handle.get();
  impl_->workspace = workspace;
  impl_->workspace_bytes = workspace_bytes;
}

// cuBLASLt is column-major: a row-major matrix is its transpose there, so D^T [n,m] = op(B)^T A^T is asked
// for, with B as the first operand.
void CublasLt::run(const Gemm& requested, cudaStream_t stream) {
  const Gemm gemm = with_leading_dimensions(requested);
  Operation operation;
  MOESCOPE_BLAS_CHECK(cublasLtMatmulDescCreate(operation.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  set(operation, CUBLASLT_MATMUL_DESC_TRANSA, gemm.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(operation, CUBLASLT_MATMUL_DESC_TRANSB, gemm.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (gemm.bias != nullptr) {
    set(operation, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, gemm.bias);
    set(operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, std::int32_t{CUDA_R_32F});
  }

  const auto u64 = [](std::int64_t value) { return static_cast<std::uint64_t>(value); };
  Layout a;
  Layout b;
  Layout d;
  MOESCOPE_BLAS_CHECK(cublasLtMatrixLayoutCreate(b.out(), cuda_type(gemm.in),
                                                 u64(gemm.transpose_b ? gemm.k : gemm.n),
                                                 u64(gemm.transpose_b ? gemm.n : gemm.k), gemm.ldb));
  MOESCOPE_BLAS_CHECK(cublasLtMatrixLayoutCreate(a.out(), cuda_type(gemm.in),
                                                 u64(gemm.transpose_a ? gemm.m : gemm.k),
                                                 u64(gemm.transpose_a ? gemm.k : gemm.m), gemm.lda));
  MOESCOPE_BLAS_CHECK(
      cublasLtMatrixLayoutCreate(d.out(), cuda_type(gemm.out), u64(gemm.n), u64(gemm.m), gemm.ldd));

  if (gemm.batch > 1) {
    const auto repeat = [&](const Layout& layout, std::int64_t stride) {
      set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, static_cast<std::int32_t>(gemm.batch));
      set(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, stride);
    };
    repeat(a, gemm.stride_a);
    repeat(b, gemm.stride_b);
    repeat(d, gemm.stride_d);
  }
  const std::uint32_t align_a = alignment(gemm.a, gemm.stride_a, gemm.in);
  const std::uint32_t align_b = alignment(gemm.b, gemm.stride_b, gemm.in);
  const std::uint32_t align_d = alignment(gemm.d, gemm.stride_d, gemm.out);

  const Key key{gemm.m,
                gemm.n,
                gemm.k,
                gemm.lda,
                gemm.ldb,
                gemm.ldd,
                gemm.transpose_a ? 1 : 0,
                gemm.transpose_b ? 1 : 0,
                static_cast<std::int64_t>(gemm.in),
                static_cast<std::int64_t>(gemm.out),
                gemm.bias != nullptr ? 1 : 0,
                gemm.beta != 0 ? 1 : 0,
                gemm.batch,
                gemm.stride_a,
                gemm.stride_b,
                gemm.stride_d,
                align_a,
                align_b,
                align_d,
                impl_->workspace_bytes};
  auto found = impl_->algorithms.find(key);
  if (found == impl_->algorithms.end()) {
    Preference preference;
    MOESCOPE_BLAS_CHECK(cublasLtMatmulPreferenceCreate(preference.out()));
    set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, u64(impl_->workspace_bytes));
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, align_b);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, align_a);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, align_d);
    set(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, align_d);
    if (gemm.out != Dtype::kF32) {
      // Parts of a sum are not rounded before they are added.
      set(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
          static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    }
    cublasLtMatmulHeuristicResult_t result{};
    int count = 0;
    MOESCOPE_BLAS_CHECK(cublasLtMatmulAlgoGetHeuristic(impl_->in_use, operation.get(), b.get(), a.get(),
                                                       d.get(), d.get(), preference.get(), 1, &result,
                                                       &count));
    if (count == 0) {
      throw CudaError("cublasLtMatmulAlgoGetHeuristic",
                      fmt::format("no algorithm for m={} n={} k={}", gemm.m, gemm.n, gemm.k), __FILE__,
                      __LINE__);
    }
    found = impl_->algorithms.emplace(key, result.algo).first;
  }
  const float alpha = 1;
  MOESCOPE_BLAS_CHECK(cublasLtMatmul(impl_->in_use, operation.get(), &alpha, gemm.b, b.get(), gemm.a, a.get(),
                                     &gemm.beta, gemm.d, d.get(), gemm.d, d.get(), &found->second,
                                     impl_->workspace, u64(impl_->workspace_bytes), stream));
}

}  // namespace moescope::cuda
