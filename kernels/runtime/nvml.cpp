#include "kernels/runtime/nvml.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <bit>

namespace moescope::cuda {

/// The few entry points in use, declared here so that the build needs no nvml.h. Names, types and constants:
/// NVIDIA Management Library API reference, nvmlReturn_t, nvmlClockType_t, nvmlTemperatureSensors_t.
struct Nvml::Library {
  using Handle = void*;
  static constexpr int kSuccess = 0;
  static constexpr int kClockSm = 1;
  static constexpr int kTemperatureGpu = 0;

  void* object = nullptr;
  bool initialised = false;
  Handle device = nullptr;
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  const char* (*error_string)(int) = nullptr;
  int (*handle_by_pci)(const char*, Handle*) = nullptr;
  int (*clock)(Handle, int, unsigned*) = nullptr;
  int (*max_clock)(Handle, int, unsigned*) = nullptr;
  int (*temperature)(Handle, int, unsigned*) = nullptr;
  int (*driver_version)(char*, unsigned) = nullptr;

  Library() = default;
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() {
    if (initialised) {
      (void)shutdown();
    }
    if (object != nullptr) {
      (void)dlclose(object);
    }
  }

  template <class F>
  bool find(F& function, const char* name) {
    function = std::bit_cast<F>(dlsym(object, name));
    return function != nullptr;
  }

  /// Empty on success, else why not.
  std::string open(const std::string& pci_bus_id) {
    object = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (object == nullptr) {
      return "libnvidia-ml.so.1 cannot be opened";
    }
    if (!find(init, "nvmlInit_v2") || !find(shutdown, "nvmlShutdown") ||
        !find(error_string, "nvmlErrorString") || !find(handle_by_pci, "nvmlDeviceGetHandleByPciBusId_v2") ||
        !find(clock, "nvmlDeviceGetClockInfo") || !find(max_clock, "nvmlDeviceGetMaxClockInfo") ||
        !find(temperature, "nvmlDeviceGetTemperature") ||
        !find(driver_version, "nvmlSystemGetDriverVersion")) {
      return "libnvidia-ml.so.1 lacks an entry point";
    }
    if (const int result = init(); result != kSuccess) {
      return fmt::format("nvmlInit: {}", error_string(result));
    }
    initialised = true;
    if (const int result = handle_by_pci(pci_bus_id.c_str(), &device); result != kSuccess) {
      return fmt::format("nvmlDeviceGetHandleByPciBusId({}): {}", pci_bus_id, error_string(result));
    }
    return {};
  }
};

Nvml::Nvml(const std::string& pci_bus_id) : library_(std::make_unique<Library>()) {
  reason_ = library_->open(pci_bus_id);
}

Nvml::~Nvml() = default;

ClockSample Nvml::sample() const {
  ClockSample sample;
  if (!reason_.empty()) {
    return sample;
  }
  constexpr double kMHz = 1e6;
  unsigned value = 0;
  if (library_->clock(library_->device, Library::kClockSm, &value) == Library::kSuccess) {
    sample.sm_clock_hz = value * kMHz;
  }
  if (library_->max_clock(library_->device, Library::kClockSm, &value) == Library::kSuccess) {
    sample.sm_clock_max_hz = value * kMHz;
  }
  if (library_->temperature(library_->device, Library::kTemperatureGpu, &value) == Library::kSuccess) {
    sample.temperature_c = value;
  }
  return sample;
}

std::string Nvml::driver_version() const {
  if (!reason_.empty()) {
    return fmt::format("unavailable: {}", reason_);
  }
  std::array<char, 80> text{};  // NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
  const int result = library_->driver_version(text.data(), static_cast<unsigned>(text.size()));
  return result == Library::kSuccess ? std::string(text.data())
                                     : fmt::format("unavailable: {}", library_->error_string(result));
}

}  // namespace moescope::cuda
