#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/counters/counter_source.hpp"

namespace moescope {

/// What one measurement gave, whatever counted: everything that is needed to look at it again without a GPU.
struct CounterRecording {
  std::string source;  ///< CounterSource::name() of who counted
  std::string device;  ///< e.g. "NVIDIA H200"
  CounterPlan plan;
  std::vector<RangeCounters> ranges;
};

/// Writes JSON; the directory must exist. Throws FileError when it cannot be written.
void write_recording(const CounterRecording& recording, const std::filesystem::path& file);
/// Throws FileError naming the field when the file is missing or does not hold together.
CounterRecording read_recording(const std::filesystem::path& file);
/// The same from the text of a file; `path` names it in messages.
CounterRecording parse_recording(std::string_view json, std::string_view path);

/// Gives what was recorded. plan() has no passes: nothing runs again, so measure() calls neither before_pass
/// nor run. A counter that was not recorded is unavailable; asking for a range that was not is
/// InvalidArgument
/// ("range", ...).
std::unique_ptr<CounterSource> make_recorded_counters(CounterRecording recording);

}  // namespace moescope
