#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "profiler/counters/counter_source.hpp"

/// Hardware counters of NVIDIA GPUs by CUPTI. libcupti is opened at run time: a build without CUDA, or a
/// machine without the library, loses counters and nothing else.
namespace moescope {

/// Counters of the current CUDA device: user ranges, replayed by the caller's work (CounterSource::measure).
/// The metrics a range may be asked for are all that CUPTI knows for the chip, sub-metric included
/// ("dram__bytes_read.sum"). Throws CountersUnavailable when CUPTI cannot be opened or there is no device;
/// says what would permit it.
std::unique_ptr<CounterSource> make_cupti_counters();

/// What measuring `counters` on `chip` ("GA100") takes, by CUPTI's host half: needs the library, no GPU.
/// Throws CountersUnavailable when CUPTI cannot be opened, InvalidArgument("chip", ...) for one it does not
/// know.
CounterPlan plan_counters(std::string_view chip, std::span<const std::string> counters);

/// What `moescope doctor` says of CUPTI on this machine. Does not throw.
struct CuptiStatus {
  std::string version;  ///< of the library, e.g. "13.0 (API 130001)"; "" when it cannot be opened
  std::string path;     ///< where it was found
  bool host = false;    ///< names and passes can be planned
  bool permitted = false;
  std::string reason;  ///< why counters cannot be had here, and what would permit them; "" when they can
};
/// Opens CUPTI and, with a device, a session on it: where a missing permission and another profiler show.
CuptiStatus cupti_status();

}  // namespace moescope
