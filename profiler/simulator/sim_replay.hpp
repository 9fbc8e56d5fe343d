#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "profiler/simulator/sim_device.hpp"
#include "profiler/simulator/streams/access_stream.hpp"

/// Plays a layer's launches on a modelled device: blocks on multiprocessors, their accesses through the
/// caches.
namespace moescope {

struct ReplayOptions {
  /// Line accesses to simulate at most, about: beyond it, every 2nd, 4th, ... class of sets is left out.
  std::int64_t max_accesses = 12'000'000;
  int threads = 1;  ///< results do not depend on it
  /// Part of L2 that foreign dirty data fills at first.
  double cold_dirty_fraction = 0;
  /// Called now and then with the share done, 0..1.
  std::function<void(double)> progress;
};

using MemoryCount = std::int64_t MemoryCounters::*;

/// One kernel, in bytes of the whole problem (sampling is scaled up).
struct LaunchReplay {
  Stage stage = Stage::kExperts;
  std::string name;
  Overlap overlap = Overlap::kSharedMlp;
  std::int64_t units = 0;
  std::int64_t slots = 0;  ///< blocks at work at once
  double l1_read_bytes = 0;
  double l1_hit_bytes = 0;
  double l2_read_bytes = 0;
  double l2_hit_bytes = 0;
  double multicast_bytes = 0;  ///< received on top of l2_read_bytes: one read of L2 for several blocks
  double l2_write_bytes = 0;
  double l2_partial_bytes = 0;  ///< of l2_write_bytes: sectors stored in part, which L2 merges
  double l2_reduce_bytes = 0;
  double link_bytes = 0;
  double hbm_read_bytes = 0;
  double hbm_write_bytes = 0;
  double tensor_flop = 0;
  double cuda_core_flop = 0;
  double instructions = 0;
  double dependent_steps = 0;  ///< trips to memory one after another, of the slot with most
  double chain_steps = 0;      ///< likewise, of WorkUnit::chain_steps
  bool dependent = false;      ///< KernelLaunch::dependent
  /// When the last multiprocessor is done, if only what happens above HBM took time; and the same if work
  /// were spread perfectly over the slots.
  double makespan_s = 0;
  double balanced_s = 0;
  std::vector<MemoryCounters> of_classes;  ///< what each class that was simulated counted; all 64: exact

  /// Standard error that sampling leaves in the sum of these counts, as a fraction of it: from how the
  /// classes differ. 0 when replayed exactly; null when classes were left out and the others counted nothing.
  std::optional<double> sampling_error(std::span<const MemoryCount> counts) const;
  /// Of all bytes that HBM moved.
  std::optional<double> hbm_sampling_error() const;
};

struct Replay {
  std::vector<LaunchReplay> launches;
  unsigned classes = kMaxClasses;  ///< of 64 that were simulated; 64: exact
};

/// Starts with empty caches. Throws what the device's geometry and the stream throw.
Replay replay(std::span<const KernelLaunch> launches, const DeviceSpec& device, const ReplayOptions& options);

}  // namespace moescope
