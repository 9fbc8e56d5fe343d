#include "core/systems/system_traits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/base/error.hpp"

namespace moescope {
namespace {

using enum Stage;

constexpr std::array kDenseStages = {kSharedMlp};
constexpr std::array kFfnStages = {kRouterProject, kRouterSelect, kSchedule, kExperts};
constexpr std::array kSharedFfnStages = {kRouterProject, kRouterSelect, kSchedule, kExperts, kSharedMlp};
// No scores of its own, so that its expert stage is expert_combine; product keys need no schedule.
constexpr std::array kPkmStages = {kRouterProject, kRouterSelect, kExpertCombine};
constexpr std::array kPeerStages = {kRouterProject, kRouterSelect, kExperts};

constexpr std::array kAllAtOnce = {ScheduleKind::kDenseMasked};
constexpr std::array kByExpert = {ScheduleKind::kExpertCentric, ScheduleKind::kTokenCentric,
                                  ScheduleKind::kDenseMasked};
constexpr std::array kByToken = {ScheduleKind::kTokenCentric, ScheduleKind::kDenseMasked};
constexpr std::array kOmniMoeSchedules = {ScheduleKind::kStaircase, ScheduleKind::kTokenCentric,
                                          ScheduleKind::kExpertCentric, ScheduleKind::kDenseMasked,
                                          ScheduleKind::kSparseLibrary};

constexpr std::array kSoftmax = {GateMode::kSoftmax};
constexpr std::array kSoftmaxOrProbability = {GateMode::kSoftmax, GateMode::kProbability};
constexpr std::array kSoftmaxOrRelu = {GateMode::kSoftmax, GateMode::kRelu};

using Name = std::string_view;
constexpr std::array kDenseOptions = {Name("activation")};
constexpr std::array kFfnOptions = {Name("schedule"), Name("expert_size"), Name("activation")};
constexpr std::array kPkmOptions = {Name("schedule"), Name("heads"), Name("key_size")};
constexpr std::array kPeerOptions = {Name("schedule"), Name("heads"), Name("key_size"), Name("activation")};
constexpr std::array kOmniMoeOptions = {Name("grid"),        Name("schedule"),   Name("group_size"),
                                        Name("tile_tokens"), Name("activation"), Name("ranks"),
                                        Name("placement"),   Name("exchange")};

constexpr std::array kTraits = {
    SystemTraits{.system = System::kDenseMlp,
                 .name = "dense_mlp",
                 .router = RouterKind::kNone,
                 .experts = ExpertKind::kNone,
                 .dense_branch = true,
                 .stages = kDenseStages,
                 .schedules = kAllAtOnce,
                 .chooses_schedule = false,
                 .gate_modes = kSoftmax,
                 .options = kDenseOptions,
                 .snapshots = true,
                 .colour = "#777777",
                 .marker = "x"},
    SystemTraits{.system = System::kGShard,
                 .name = "gshard",
                 .router = RouterKind::kFlat,
                 .experts = ExpertKind::kFfn,
                 .dense_branch = false,
                 .stages = kFfnStages,
                 .schedules = kByExpert,
                 .chooses_schedule = true,
                 .token_rules = true,
                 .gate_modes = kSoftmaxOrProbability,
                 .options = kFfnOptions,
                 .snapshots = true,
                 .colour = "#D55E00",
                 .marker = "o"},
    SystemTraits{.system = System::kDeepSeekMoe,
                 .name = "deepseekmoe",
                 .router = RouterKind::kFlat,
                 .experts = ExpertKind::kFfn,
                 .dense_branch = true,
                 .stages = kSharedFfnStages,
                 .schedules = kByExpert,
                 .chooses_schedule = true,
                 .token_rules = true,
                 .gate_modes = kSoftmaxOrProbability,
                 .options = kFfnOptions,
                 .snapshots = true,
                 .colour = "#CC79A7",
                 .marker = "s"},
    SystemTraits{.system = System::kPkm,
                 .name = "pkm",
                 .router = RouterKind::kProductKeys,
                 .experts = ExpertKind::kValue,
                 .dense_branch = false,
                 .stages = kPkmStages,
                 .schedules = kByToken,
                 .chooses_schedule = true,
                 .gate_modes = kSoftmax,
                 .options = kPkmOptions,
                 .snapshots = false,
                 .colour = "#E69F00",
                 .marker = "D"},
    SystemTraits{.system = System::kPeer,
                 .name = "peer",
                 .router = RouterKind::kProductKeys,
                 .experts = ExpertKind::kNeuron,
                 .dense_branch = false,
                 .stages = kPeerStages,
                 .schedules = kByToken,
                 .chooses_schedule = true,
                 .gate_modes = kSoftmaxOrRelu,
                 .options = kPeerOptions,
                 .snapshots = false,
                 .colour = "#0072B2",
                 .marker = "v"},
    SystemTraits{.system = System::kOmniMoe,
                 .name = "omnimoe",
                 .router = RouterKind::kGrid,
                 .experts = ExpertKind::kNeuron,
                 .dense_branch = true,
                 .stages = {},
                 .schedules = kOmniMoeSchedules,
                 .chooses_schedule = true,
                 .gate_modes = kSoftmaxOrProbability,
                 .options = kOmniMoeOptions,
                 .snapshots = true,
                 .colour = "#009E73",
                 .marker = "^"},
};

}  // namespace

bool SystemTraits::has(std::string_view option) const {
  return std::ranges::find(options, option) != options.end();
}

std::string SystemTraits::schedule_names() const {
  std::string names(to_string(ScheduleKind::kAuto));
  for (const ScheduleKind kind : schedules) {
    if (chooses_schedule) {
      names += fmt::format(", {}", to_string(kind));
    }
  }
  names += token_rules ? ", padded:CAPACITY, token_rounding" : "";
  return names;
}

bool SystemTraits::has(ScheduleKind kind) const {
  return std::ranges::find(schedules, kind) != schedules.end();
}

bool SystemTraits::has(const ScheduleOptions& schedule) const {
  return has(schedule.kind) && (schedule.tokens.every() || token_rules);
}

std::string_view SystemTraits::expert_words() const {
  switch (experts) {
    case ExpertKind::kNone:
      return "no experts";
    case ExpertKind::kFfn:
      return "FFN experts";
    case ExpertKind::kValue:
      return "values";
    case ExpertKind::kNeuron:
      return "atomic experts";
  }
  return "?";
}

std::span<const SystemTraits> system_traits() { return kTraits; }

const SystemTraits& traits_of(System system) {
  const auto* const found = std::ranges::find(kTraits, system, &SystemTraits::system);
  if (found == kTraits.end()) {
    throw InternalError("a system without traits");
  }
  return *found;
}

ScheduleOptions system_schedule(System system) {
  return {.kind = traits_of(system).schedules.front(), .group_size = 1};
}

}  // namespace moescope
