// The device and the libraries in use, and whether this build can use the device at all.
#include <cublasLt.h>
#include <cusparse.h>
#include <fmt/format.h>

#include <array>

#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvml.hpp"

namespace moescope::cuda {
namespace {

/// Compiled for the same architectures as every other kernel; launching is not needed to ask for its image.
__global__ void architecture_probe() {}

std::string cuda_version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

/// 0 where the driver does not say.
double attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, name, device) != cudaSuccess) {
    (void)cudaGetLastError();
    return 0;
  }
  return value;
}

std::string cusparse_version() {
  int major = 0;
  int minor = 0;
  int patch = 0;
  if (cusparseGetProperty(MAJOR_VERSION, &major) != CUSPARSE_STATUS_SUCCESS ||
      cusparseGetProperty(MINOR_VERSION, &minor) != CUSPARSE_STATUS_SUCCESS ||
      cusparseGetProperty(PATCH_LEVEL, &patch) != CUSPARSE_STATUS_SUCCESS) {
    return "unavailable: cusparseGetProperty failed";
  }
  return fmt::format("{}.{}.{}", major, minor, patch);
}

}  // namespace

std::optional<std::string> why_no_device() {
  int driver = 0;
  (void)cudaDriverGetVersion(&driver);
  if (driver == 0) {
    return "no NVIDIA driver is loaded";
  }
  int count = 0;
  if (const cudaError_t result = cudaGetDeviceCount(&count); result != cudaSuccess || count == 0) {
    (void)cudaGetLastError();
    return result == cudaSuccess || result == cudaErrorNoDevice
               ? std::string("the driver shows no CUDA device")
               : fmt::format("{} (driver supports CUDA {})", cudaGetErrorString(result),
                             cuda_version_text(driver));
  }
  cudaFuncAttributes attributes{};
  if (const cudaError_t result = cudaFuncGetAttributes(&attributes, architecture_probe);
      result != cudaSuccess) {
    (void)cudaGetLastError();
    int device = 0;
    cudaDeviceProp properties{};
    if ((result == cudaErrorNoKernelImageForDevice || result == cudaErrorInvalidDeviceFunction) &&
        cudaGetDevice(&device) == cudaSuccess &&
        cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
      return fmt::format(
          "{} has compute capability {}.{}, for which this build carries no code "
          "(CMAKE_CUDA_ARCHITECTURES)",
          properties.name, properties.major, properties.minor);
    }
    return fmt::format("{}: {}", cudaGetErrorName(result), cudaGetErrorString(result));
  }
  return std::nullopt;
}

DeviceInfo device_info() {
  if (const auto why = why_no_device(); why.has_value()) {
    throw NoDevice(*why);
  }
  int device = 0;
  MOESCOPE_CUDA_CHECK(cudaGetDevice(&device));
  std::array<char, 32> bus_id{};
  MOESCOPE_CUDA_CHECK(cudaDeviceGetPCIBusId(bus_id.data(), static_cast<int>(bus_id.size()), device));
  int driver = 0;
  int runtime = 0;
  MOESCOPE_CUDA_CHECK(cudaDriverGetVersion(&driver));
  MOESCOPE_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));

  DeviceInfo info;
  static_cast<GpuTraits&>(info) = current_gpu();
  info.driver = Nvml(bus_id.data()).driver_version();
  info.cuda_driver = cuda_version_text(driver);
  info.cuda_runtime = cuda_version_text(runtime);
  const std::size_t blas = cublasLtGetVersion();  // 10000 * major + 100 * minor + patch
  info.cublas_lt = fmt::format("{}.{}.{}", blas / 10000, blas % 10000 / 100, blas % 100);
  info.cusparse = cusparse_version();
  constexpr double kHzPerKhz = 1e3;
  constexpr double kBitsPerByte = 8;
  constexpr double kTransfersPerClock = 2;  // double data rate
  info.sm_clock_hz = kHzPerKhz * attribute(cudaDevAttrClockRate, device);
  info.memory_bytes_per_s = kTransfersPerClock * kHzPerKhz * attribute(cudaDevAttrMemoryClockRate, device) *
                            attribute(cudaDevAttrGlobalMemoryBusWidth, device) / kBitsPerByte;
  info.pci_bus_id = bus_id.data();
  return info;
}

}  // namespace moescope::cuda
