#pragma once

#include <filesystem>
#include <span>
#include <string>

#include "profiler/limits/layer_profile.hpp"

namespace moescope {

/// Profiles in the Trace Event format that chrome://tracing and ui.perfetto.dev open. One process per
/// workload and schedule; in it a thread of stages, threads of kernels, and counter tracks (ph "C"): HBM and
/// L2 bytes per second, tensor pipe and issue slots in percent.
///
/// What time means there: a stage lasts its median over the timed runs, and stages follow one another without
/// gaps. Kernels come from one traced run of their own, placed from their stage's start at their own pace;
/// they need not fill the stage. A counter track holds one value per stage, its average over the stage; there
/// is none of what was not counted in every stage (the stages say why).
std::string chrome_trace(std::span<const LayerProfile> profiles, const std::string& device);

/// Writes the above. Throws FileError.
void write_chrome_trace(std::span<const LayerProfile> profiles, const std::string& device,
                        const std::filesystem::path& file);

}  // namespace moescope
