#pragma once

#include <functional>
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
  /// Of a baseline with a rule for tokens: against the pairs that it left. `judge` then says what the rule
  /// changed.
  std::function<ErrorReport(const HostTensor& output, const Routing& routing,
                            const TokenAssignment& assignment)>
      assigned_judge;
};

/// Runs every subject, alternating (MEASURING protocol), and works out what each should have cost: one study
/// of one point each, in the order given. What the backend lacks is skipped, what throws Error or runs out of
/// memory is failed; both with reason.
std::vector<LayerStudy> study_systems(MoeBackend& backend, std::span<const SystemSubject> subjects,
                                      const SamplingOptions& sampling, const StudyProgress& progress = {});

/// One layer under several schedules, of studies of one each. What is said of the layer is what the first
/// says that came to something.
LayerStudy merge_studies(std::vector<LayerStudy> studies);

/// What became of the router's pairs under a schedule; null: all of them run.
FfnStudy ffn_study(const SystemShape& shape, const Routing& routing, const ScheduleOptions& ran,
                   const TokenAssignment* assignment);

/// What a study is of, for tables: "gshard_L1024_d1024_N128_K2", "L1024_d1024_N102400_K512" for omnimoe.
std::string study_label(const LayerStudy& study);

}  // namespace moescope
