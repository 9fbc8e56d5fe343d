#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/stage.hpp"

/// What the kernels of a layer ask of memory, in the order in which they ask: launches of work units, and
/// each unit's accesses as bursts of rows. Made from the same schedules and tile arithmetic that the kernels
/// use.
namespace moescope {

enum class AccessKind : std::uint8_t {
  kRead,        ///< from L2, around L1 (cp.async.cg, TMA)
  kReadCached,  ///< through L1 (ld.global.nc)
  kWrite,       ///< stored through to L2
  kReduce       ///< added to in L2 (red.global)
};

/// `rows` pieces of `bytes`, `pitch_bytes` apart.
struct Burst {
  std::uint64_t address = 0;
  std::uint32_t bytes = 0;
  std::uint32_t rows = 1;
  std::uint64_t pitch_bytes = 0;
  AccessKind kind = AccessKind::kRead;

  friend bool operator==(const Burst&, const Burst&) = default;
};

/// What one thread block does between taking a piece of work and the next, in order.
struct WorkUnit {
  std::vector<Burst> bursts;
  double tensor_flop = 0;
  double instructions = 0;  ///< warp instructions issued beside those of matrix products

  void clear() {
    bursts.clear();
    tensor_flop = 0;
    instructions = 0;
  }
};

/// One kernel. Units are taken in order by whichever block slot is free: by the hardware's block scheduler,
/// or by persistent blocks from a counter.
struct KernelLaunch {
  Stage stage = Stage::kExperts;
  std::string name;
  std::int64_t units = 0;
  std::int64_t blocks_per_sm = 1;
  /// Replaces `unit` by what unit number `index` does. May be called from several threads, for any index.
  std::function<void(std::int64_t index, WorkUnit& unit)> fill;
};

}  // namespace moescope
