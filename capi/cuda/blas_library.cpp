// cuBLASLt by name: libmoescope links none, so that it loads on a machine without CUDA, and takes the copy
// that the process has (PyTorch's wheels bring one). kernels/runtime/cublas_lt.cpp finds the functions below,
// which are not exported. Each passes its call on.
#include <cublasLt.h>
#include <dlfcn.h>

#include <string>

#include "capi/base/failure.hpp"

namespace moescope::capi::gpu {
namespace {

#define MOESCOPE_TEXT_OF(x) #x
#define MOESCOPE_TEXT(x) MOESCOPE_TEXT_OF(x)
constexpr const char* kName = "libcublasLt.so." MOESCOPE_TEXT(CUBLAS_VER_MAJOR);

void* library() {
  // One that is loaded already comes first: it may lie where no search path leads.
  static void* const loaded = [] {
    void* const there = dlopen(kName, RTLD_LAZY | RTLD_NOLOAD);
    return there != nullptr ? there : dlopen(kName, RTLD_LAZY | RTLD_LOCAL);
  }();
  if (loaded == nullptr) {
    throw Failure(MOESCOPE_ERROR_DEVICE,
                  std::string("blas: ") + kName +
                      " is not loaded and cannot be found; import torch first, or add its "
                      "folder to LD_LIBRARY_PATH");
  }
  return loaded;
}

template <class Function>
Function* function(const char* name) {
  void* const found = dlsym(library(), name);
  if (found == nullptr) {
    throw Failure(MOESCOPE_ERROR_DEVICE, std::string("blas: ") + kName + " has no " + name);
  }
  return reinterpret_cast<Function*>(found);
}

}  // namespace
}  // namespace moescope::capi::gpu

#define MOESCOPE_FORWARD(name, ...)                                                              \
  static decltype(name)* const passed_on = moescope::capi::gpu::function<decltype(name)>(#name); \
  return passed_on(__VA_ARGS__)

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { MOESCOPE_FORWARD(cublasLtCreate, handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { MOESCOPE_FORWARD(cublasLtDestroy, handle); }
const char* cublasLtGetStatusString(cublasStatus_t status) {
  MOESCOPE_FORWARD(cublasLtGetStatusString, status);
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  MOESCOPE_FORWARD(cublasLtMatmulDescCreate, made, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t made) {
  MOESCOPE_FORWARD(cublasLtMatmulDescDestroy, made);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t made,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              size_t bytes) {
  MOESCOPE_FORWARD(cublasLtMatmulDescSetAttribute, made, attribute, value, bytes);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t leading) {
  MOESCOPE_FORWARD(cublasLtMatrixLayoutCreate, made, type, rows, cols, leading);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t made) {
  MOESCOPE_FORWARD(cublasLtMatrixLayoutDestroy, made);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t made,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  MOESCOPE_FORWARD(cublasLtMatrixLayoutSetAttribute, made, attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  MOESCOPE_FORWARD(cublasLtMatmulPreferenceCreate, made);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t made) {
  MOESCOPE_FORWARD(cublasLtMatmulPreferenceDestroy, made);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t made,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  MOESCOPE_FORWARD(cublasLtMatmulPreferenceSetAttribute, made, attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  MOESCOPE_FORWARD(cublasLtMatmulAlgoGetHeuristic, handle, operation, a, b, c, d, preference, wanted, results,
                   found);
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  MOESCOPE_FORWARD(cublasLtMatmul, handle, operation, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d,
                   d_layout, algorithm, workspace, workspace_bytes, stream);
}

}  // extern "C"
