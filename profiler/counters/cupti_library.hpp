#pragma once

// Included by cupti_counters.cpp and cupti_kernels.cpp alone: CUPTI's types stay in those two. Written
// against CUPTI 13.0.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cupti_activity.h>
#include <cupti_profiler_host.h>
#include <cupti_profiler_target.h>
#include <cupti_range_profiler.h>
#include <cupti_target.h>
#include <cupti_version.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <bit>
#include <string>

#include "core/base/error.hpp"

namespace moescope {

#define MOESCOPE_CUPTI_FUNCTIONS(X)               \
  X(cuptiGetVersion)                              \
  X(cuptiGetResultString)                         \
  X(cuptiActivityRegisterCallbacks)               \
  X(cuptiActivityEnable)                          \
  X(cuptiActivityDisable)                         \
  X(cuptiActivityFlushAll)                        \
  X(cuptiActivityGetNextRecord)                   \
  X(cuptiProfilerInitialize)                      \
  X(cuptiDeviceGetChipName)                       \
  X(cuptiProfilerGetCounterAvailability)          \
  X(cuptiProfilerHostInitialize)                  \
  X(cuptiProfilerHostDeinitialize)                \
  X(cuptiProfilerHostGetSupportedChips)           \
  X(cuptiProfilerHostConfigAddMetrics)            \
  X(cuptiProfilerHostGetConfigImageSize)          \
  X(cuptiProfilerHostGetConfigImage)              \
  X(cuptiProfilerHostGetNumOfPasses)              \
  X(cuptiProfilerHostEvaluateToGpuValues)         \
  X(cuptiRangeProfilerEnable)                     \
  X(cuptiRangeProfilerDisable)                    \
  X(cuptiRangeProfilerGetCounterDataSize)         \
  X(cuptiRangeProfilerCounterDataImageInitialize) \
  X(cuptiRangeProfilerSetConfig)                  \
  X(cuptiRangeProfilerStart)                      \
  X(cuptiRangeProfilerStop)                       \
  X(cuptiRangeProfilerPushRange)                  \
  X(cuptiRangeProfilerPopRange)                   \
  X(cuptiRangeProfilerDecodeData)                 \
  X(cuptiRangeProfilerGetCounterDataInfo)         \
  X(cuptiRangeProfilerCounterDataGetRangeInfo)

/// A parameter block with its size filled in, as every CUPTI call wants it.
#define MOESCOPE_CUPTI_PARAMS(name, type) \
  type name{};                            \
  name.structSize = type##_STRUCT_SIZE

/// libcupti's entry points, found at run time: linking it would keep the program from starting where there is
/// no toolkit.
struct Cupti {
#define MOESCOPE_DECLARE(function) decltype(&::function) function = nullptr;
  MOESCOPE_CUPTI_FUNCTIONS(MOESCOPE_DECLARE)
#undef MOESCOPE_DECLARE
  std::string path;
  std::string why_not;  ///< empty when all is there

  Cupti() {
    void* object = open();
    if (object == nullptr) {
      why_not = fmt::format("{} cannot be opened; install CUDA's CUPTI or name its folder in LD_LIBRARY_PATH",
                            kLibrary);
      return;
    }
#define MOESCOPE_FIND(function)                                                                          \
  function = std::bit_cast<decltype(function)>(dlsym(object, #function));                                \
  if (function == nullptr) {                                                                             \
    why_not = fmt::format("{} has no " #function ", CUPTI {} has", kLibrary, CUPTI_API_VERSION / 10000); \
  }
    MOESCOPE_CUPTI_FUNCTIONS(MOESCOPE_FIND)
#undef MOESCOPE_FIND
    Dl_info info{};
    if (why_not.empty() && dladdr(std::bit_cast<void*>(cuptiGetVersion), &info) != 0) {
      path = info.dli_fname;
    }
  }

  void check(CUptiResult result, const char* call) const;

 private:
  static constexpr const char* kLibrary = "libcupti.so." MOESCOPE_CUPTI_MAJOR;

  /// Never closed: CUPTI hooks the driver.
  static void* open() {
    for (const std::string& folder :
         {std::string(), std::string(MOESCOPE_CUPTI_FOLDER "/"), std::string("/usr/local/cuda/lib64/"),
          std::string("/usr/local/cuda/extras/CUPTI/lib64/")}) {
      if (void* object = dlopen((folder + kLibrary).c_str(), RTLD_NOW | RTLD_LOCAL); object != nullptr) {
        return object;
      }
    }
    return nullptr;
  }
};

inline std::string text_of(const Cupti& cupti, CUptiResult result) {
  const char* text = nullptr;
  const bool known = cupti.cuptiGetResultString(result, &text) == CUPTI_SUCCESS && text != nullptr;
  return known ? text : fmt::format("CUPTI error {}", static_cast<int>(result));
}

/// What keeps counters away, and what would permit them; empty when the error is none of that kind.
inline std::string remedy(CUptiResult result) {
  switch (result) {
    case CUPTI_ERROR_INSUFFICIENT_PRIVILEGES:
    case CUPTI_ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES:
      return "not permitted to this user; run as root or with CAP_SYS_ADMIN, or load the driver's module "
             "with NVreg_RestrictProfilingToAdminUsers=0 (in a virtual machine, on its host)";
    case CUPTI_ERROR_HARDWARE_BUSY:
    case CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED:
    case CUPTI_ERROR_OLD_PROFILER_API_INITIALIZED:
      return "another profiler holds them; end it (ncu, nsys, DCGM, another program with CUPTI)";
    case CUPTI_ERROR_VIRTUALIZED_DEVICE_NOT_SUPPORTED:
      return "this virtual GPU gives none; its host would have to enable profiling for it";
    case CUPTI_ERROR_CONFIDENTIAL_COMPUTING_NOT_SUPPORTED:
      return "the GPU runs in confidential-computing mode, which gives none";
    case CUPTI_ERROR_MIG_DEVICE_NOT_SUPPORTED:
      return "this MIG instance gives none; use the whole GPU";
    case CUPTI_ERROR_CMP_DEVICE_NOT_SUPPORTED:
    case CUPTI_ERROR_SLI_DEVICE_NOT_SUPPORTED:
    case CUPTI_ERROR_WSL_DEVICE_NOT_SUPPORTED:
      return "this kind of GPU or of system gives none";
    default:
      return {};
  }
}

inline void Cupti::check(CUptiResult result, const char* call) const {
  if (result == CUPTI_SUCCESS) {
    return;
  }
  const std::string what = fmt::format("{}: {}", call, text_of(*this, result));
  if (const std::string why = remedy(result); !why.empty()) {
    throw CountersUnavailable(fmt::format("{} ({})", why, what));
  }
  throw Error(ExitCode::kDeviceError, what);
}

#define MOESCOPE_CUPTI_CALL(function, params) library().check(library().function(&(params)), #function)

inline const Cupti& library_as_found() {
  static const Cupti cupti;
  return cupti;
}

inline const Cupti& library() {
  const Cupti& cupti = library_as_found();
  if (!cupti.why_not.empty()) {
    throw CountersUnavailable(cupti.why_not);
  }
  return cupti;
}

}  // namespace moescope
