#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/systems/system.hpp"
#include "profiler/study/layer_study.hpp"

namespace moescope {

/// One of the layers that are measured side by side: OmniMoE under a schedule, or a baseline, both kept by
/// reference, or what stands for one that could not be made. Exactly one of the three is set.
struct SystemSubject {
  const LayerInputs* omnimoe = nullptr;
  ScheduleOptions schedule;  ///< of omnimoe
  const SystemInputs* baseline = nullptr;
  std::optional<LayerStudy> failed;  ///< its study, of one failed point; backend and sampling are filled in
  Judge judge;
};

/// Runs every subject, alternating (MEASURING protocol), and works out what each should have cost: one study
/// of one point each, in the order given. What the backend lacks is skipped, what throws Error or runs out of
/// memory is failed; both with reason.
std::vector<LayerStudy> study_systems(MoeBackend& backend, std::span<const SystemSubject> subjects,
                                      const SamplingOptions& sampling, const StudyProgress& progress = {});

/// What a study is of, for tables: "gshard_L1024_d1024_N128_K2", "L1024_d1024_N102400_K512" for omnimoe.
std::string study_label(const LayerStudy& study);

}  // namespace moescope
