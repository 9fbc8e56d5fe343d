#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/gpu_traits.hpp"
#include "profiler/simulator/sim_memory.hpp"
#include "profiler/simulator/streams/access_stream.hpp"

/// A GPU as data: what the simulator must know of it, each value with its source.
namespace moescope {

/// Values are in the units their keys say; every key of the JSON file is a member here.
struct DeviceSpec : GpuTraits {
  /// What the CUDA runtime calls it, where that is not `name`.
  std::vector<std::string> runtime_names;
  /// Of the file it was read from; empty for one that was made.
  std::filesystem::path folder;
  double hbm_read_bytes_per_s = 0;   ///< what a kernel that only reads sustains
  double hbm_write_bytes_per_s = 0;  ///< the same for writing
  std::int64_t l2_ways = 0;
  double l2_dirty_fraction = 1;   ///< most of L2 that waits to be written back
  std::int64_t l2_kept_ways = 0;  ///< most lines of a set that evict_last protects
  L2Halves l2_halves = L2Halves::kOne;
  Replacement l2_replacement = Replacement::kLru;
  double l2_bytes_per_s = 0;          ///< reads and writes of all multiprocessors
  double l2_reduce_bytes_per_s = 0;   ///< operands of reductions
  std::int64_t l1_bytes = 0;          ///< of one multiprocessor, for kernels that use no shared memory
  double l1_bytes_per_clock = 0;      ///< of one multiprocessor
  double sm_l2_bytes_per_clock = 0;   ///< most that one multiprocessor takes from L2
  double tensor_bf16_flop_per_s = 0;  ///< what large matrix products sustain
  double fp32_flop_per_s = 0;
  double issue_per_clock = 0;  ///< warp instructions of one multiprocessor
  double l2_latency_s = 0;     ///< a load that hits L2, under load
  double hbm_latency_s = 0;    ///< a load that misses it, under load
  double launch_s = 0;  ///< from one kernel's last block to the next one's first, plus ramp-up and drain

  std::map<std::string, std::string> sources;  ///< key -> where its value comes from

  MemoryGeometry memory() const;
  StreamOptions stream_options(const StreamConstants& constants) const;
};

/// Reads {"name": ..., "runtime_names": [...], "values": {KEY: {"value": ..., "source": ...}}}, of which
/// runtime_names may be missing. Throws FileError naming `path`, the
/// key and what is wrong: JSON that does not parse, a key that is missing, unknown or without source, a value
/// of another type or out of range, caches whose sets do not divide into classes. No input crashes it
/// (fuzzed).
DeviceSpec parse_device(std::string_view json, std::string_view path);
DeviceSpec read_device(const std::filesystem::path& file);
/// The same back as JSON text, keys in order.
std::string device_json(const DeviceSpec& device);

std::string_view to_string(L2Halves halves);

}  // namespace moescope
