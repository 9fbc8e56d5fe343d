#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "core/ranks/rank_network.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/ranks.hpp"

namespace moescope::cuda {

/// An allocation of this rank that the other processes write to, and theirs as this one sees them (CUDA IPC;
/// GPUs of one host that reach each other's memory).
class PeerMemory {
 public:
  PeerMemory() = default;
  /// Allocates, all zero.
  explicit PeerMemory(std::int64_t bytes);
  PeerMemory(PeerMemory&&) = delete;
  PeerMemory& operator=(PeerMemory&&) = delete;
  ~PeerMemory();

  /// All ranks together: opens the others' allocations. Throws NoDevice where a GPU cannot reach another's
  /// memory, CudaError, RankFailure.
  void connect(RankNetwork& network);

  std::byte* own() const { return own_.get(); }
  /// [P] on the device.
  std::byte* const* all() const { return table_.get(); }

 private:
  Bytes own_;
  std::vector<std::byte*> opened_;
  DeviceBuffer<std::byte*> table_;
};

/// Host memory that a kernel waits by and the host looks at.
class HostWatch {
 public:
  HostWatch();
  HostWatch(const HostWatch&) = delete;
  HostWatch& operator=(const HostWatch&) = delete;
  ~HostWatch();

  RankWatch* device() const { return device_; }
  void stop();
  /// Stage of the phase that a kernel waits for; kLayer when none does.
  Stage waiting() const;

 private:
  volatile RankWatch* host_ = nullptr;
  RankWatch* device_ = nullptr;
};

}  // namespace moescope::cuda
