#include "kernels/ranks/peer_memory.hpp"

#include <cstring>

namespace moescope::cuda {
namespace {

/// What a rank says of its allocation.
struct Share {
  cudaIpcMemHandle_t handle;
  char pci_bus_id[32];
};

}  // namespace

PeerMemory::PeerMemory(std::int64_t bytes) : own_(bytes) {
  MOESCOPE_CUDA_CHECK(cudaMemset(own_.get(), 0, static_cast<std::size_t>(bytes)));
  MOESCOPE_CUDA_CHECK(cudaDeviceSynchronize());
}

PeerMemory::~PeerMemory() {
  for (std::byte* const memory : opened_) {
    if (memory != own_.get()) {
      (void)cudaIpcCloseMemHandle(memory);
    }
  }
}

void PeerMemory::connect(RankNetwork& network) {
  Share mine{};
  int device = 0;
  MOESCOPE_CUDA_CHECK(cudaGetDevice(&device));
  MOESCOPE_CUDA_CHECK(cudaDeviceGetPCIBusId(mine.pci_bus_id, sizeof mine.pci_bus_id, device));
  MOESCOPE_CUDA_CHECK(cudaIpcGetMemHandle(&mine.handle, own_.get()));
  const std::vector<Message> shares = network.all_gather(std::as_bytes(std::span(&mine, 1)));
  for (std::size_t rank = 0; rank < shares.size(); ++rank) {
    if (static_cast<std::int64_t>(rank) == network.rank()) {
      opened_.push_back(own_.get());
      continue;
    }
    Share share{};
    if (shares[rank].size() != sizeof share) {
      throw InternalError("a rank's memory handle is cut short");
    }
    std::memcpy(&share, shares[rank].data(), sizeof share);
    int other = 0;
    int reaches = 0;
    if (std::strcmp(share.pci_bus_id, mine.pci_bus_id) == 0) {
      throw InvalidArgument("ranks", fmt::to_string(network.ranks()),
                            fmt::format("rank {} and rank {} are on one GPU ({}); each needs its own",
                                        network.rank(), rank, share.pci_bus_id));
    }
    if (cudaDeviceGetByPCIBusId(&other, share.pci_bus_id) != cudaSuccess ||
        cudaDeviceCanAccessPeer(&reaches, device, other) != cudaSuccess || reaches == 0) {
      (void)cudaGetLastError();
      throw NoDevice(
          fmt::format("rank {} on {} cannot reach the memory of rank {} on {}: GPUs of several ranks "
                      "have to be of one host and linked",
                      network.rank(), mine.pci_bus_id, rank, share.pci_bus_id));
    }
    void* memory = nullptr;
    MOESCOPE_CUDA_CHECK(cudaIpcOpenMemHandle(&memory, share.handle, cudaIpcMemLazyEnablePeerAccess));
    opened_.push_back(static_cast<std::byte*>(memory));
  }
  table_ = DeviceBuffer<std::byte*>(std::ssize(opened_));
  MOESCOPE_CUDA_CHECK(cudaMemcpy(table_.get(), opened_.data(), static_cast<std::size_t>(table_.bytes()),
                                 cudaMemcpyHostToDevice));
}

HostWatch::HostWatch() {
  void* host = nullptr;
  MOESCOPE_CUDA_CHECK(cudaHostAlloc(&host, sizeof(RankWatch), cudaHostAllocMapped));
  std::memset(host, 0, sizeof(RankWatch));
  host_ = static_cast<RankWatch*>(host);
  void* device = nullptr;
  MOESCOPE_CUDA_CHECK(cudaHostGetDevicePointer(&device, host, 0));
  device_ = static_cast<RankWatch*>(device);
}

HostWatch::~HostWatch() { (void)cudaFreeHost(const_cast<RankWatch*>(host_)); }

void HostWatch::stop() { host_->stop = 1; }

Stage HostWatch::waiting() const {
  switch (host_->waiting) {
    case 1 + static_cast<int>(RankPhase::kRows):
    case 1 + static_cast<int>(RankPhase::kSelection):
      return Stage::kTokenDispatch;
    case 1 + static_cast<int>(RankPhase::kSums):
      return Stage::kTokenCombine;
    default:
      return Stage::kLayer;
  }
}

}  // namespace moescope::cuda
