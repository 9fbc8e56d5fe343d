#pragma once

#include <cstdint>
#include <span>

#include "profiler/simulator/streams/access_stream.hpp"

namespace moescope::test {

/// visit(address, bytes, kind) for every row of every burst that the launches of a stage ask for, in order.
template <class Visit>
void for_each_row(std::span<const KernelLaunch> launches, Stage stage, const Visit& visit) {
  WorkUnit unit;
  for (const KernelLaunch& launch : launches) {
    for (std::int64_t u = 0; launch.stage == stage && u < launch.units; ++u) {
      launch.fill(u, unit);
      for (const Burst& burst : unit.bursts) {
        for (std::uint32_t row = 0; row < burst.rows; ++row) {
          visit(burst.address + row * burst.pitch_bytes, burst.bytes, burst.kind);
        }
      }
    }
  }
}

}  // namespace moescope::test
