#pragma once

#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <cstdint>
#include <string_view>
#include <utility>

#include "core/base/error.hpp"

/// Owners of CUDA handles: move-only, destructors never throw. Includable from plain C++.
namespace moescope::cuda {

/// A CUDA runtime, cuBLAS, cuSPARSE or driver call failed. Message: call, error name and text, file:line.
class CudaError : public Error {
 public:
  CudaError(std::string_view call, std::string_view error, std::string_view file, int line)
      : Error(ExitCode::kDeviceError, fmt::format("{} failed: {} ({}:{})", call, error, file, line)) {}
};

void check(cudaError_t result, const char* call, const char* file, int line);

#define MOESCOPE_CUDA_CHECK(call) ::moescope::cuda::check((call), #call, __FILE__, __LINE__)

/// Device memory of `count` elements of T, plain cudaMalloc. Contents are uninitialised.
template <class T>
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(std::int64_t count) : count_(count) {
    if (count > 0) {
      void* raw = nullptr;
      MOESCOPE_CUDA_CHECK(cudaMalloc(&raw, static_cast<std::size_t>(count) * sizeof(T)));
      data_ = static_cast<T*>(raw);
    }
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() {
    if (data_ != nullptr) {
      (void)cudaFree(data_);
    }
  }

  T* get() const { return data_; }
  std::int64_t count() const { return count_; }
  std::int64_t bytes() const { return count_ * static_cast<std::int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

/// Owner of an object of a CUDA library that Create(out(), ...) makes and Destroy(object) ends.
template <class Object, auto Destroy>
class UniqueObject {
 public:
  UniqueObject() = default;
  UniqueObject(UniqueObject&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  UniqueObject& operator=(UniqueObject&& other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  UniqueObject(const UniqueObject&) = delete;
  UniqueObject& operator=(const UniqueObject&) = delete;
  ~UniqueObject() {
    if (object_ != nullptr) {
      (void)Destroy(object_);
    }
  }
  /// For the call that makes the object; must own none yet.
  Object* out() { return &object_; }
  Object get() const { return object_; }

 private:
  Object object_ = nullptr;
};

/// An owning, non-blocking stream.
class Stream {
 public:
  Stream() { MOESCOPE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  /// `priority`: within cudaDeviceGetStreamPriorityRange().
  explicit Stream(int priority) {
    MOESCOPE_CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority));
  }
  Stream(Stream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream() {
    if (stream_ != nullptr) {
      (void)cudaStreamDestroy(stream_);
    }
  }
  cudaStream_t get() const { return stream_; }
  void synchronize() const { MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// A timing event.
class Event {
 public:
  Event() { MOESCOPE_CUDA_CHECK(cudaEventCreate(&event_)); }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event() {
    if (event_ != nullptr) {
      (void)cudaEventDestroy(event_);
    }
  }
  void record(cudaStream_t stream) const { MOESCOPE_CUDA_CHECK(cudaEventRecord(event_, stream)); }
  /// Seconds from `start` to this event; both must have completed.
  double seconds_since(const Event& start) const {
    float ms = 0;
    MOESCOPE_CUDA_CHECK(cudaEventElapsedTime(&ms, start.event_, event_));
    return static_cast<double>(ms) * 1e-3;
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace moescope::cuda
