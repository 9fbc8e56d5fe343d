#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/stage.hpp"
#include "core/systems/system.hpp"

namespace moescope {

/// How a system finds a token's experts.
enum class RouterKind : std::uint8_t {
  kNone,         ///< every token takes everything
  kFlat,         ///< one logit for each of N experts: a grid of one row
  kProductKeys,  ///< heads of queries against two sets of sqrt(N) sub-keys: a square grid, a row per query
  kGrid,         ///< OmniMoE's Cartesian product of row and column logits
};

/// What an expert is.
enum class ExpertKind : std::uint8_t {
  kNone,
  kFfn,     ///< a gated FFN of expert_size neurons
  kValue,   ///< a row that is added
  kNeuron,  ///< one hidden neuron: atomic
};

/// All that the code asks of a kind of layer beside its builder, cost, mirror, oracle and kernels. A new one
/// is a row of the table in system_traits.cpp.
struct SystemTraits {
  System system;
  std::string_view name;
  RouterKind router;
  ExpertKind experts;
  /// A gated MLP of width shared_size that every token passes: the layer itself, or a shared expert.
  bool dense_branch;
  /// In order, without kLayer. Empty: they follow from the schedule.
  std::span<const Stage> stages;
  /// Orders of work of the expert stage; the first is its own. dense_mlp, which has none, computes all.
  std::span<const ScheduleKind> schedules;
  /// Whether a person may choose among them.
  bool chooses_schedule;
  /// Whether its experts may be given other pairs than the router's (TokenRule).
  bool token_rules = false;
  std::span<const GateMode> gate_modes;
  /// Options of the command line, and axes of experiments, that it has and some other system has not.
  std::span<const std::string_view> options;
  /// Whether a snapshot can hold such a layer. Every other family of workloads is made for every system.
  bool snapshots;
  std::string_view colour;  ///< "#rrggbb", in figures that compare systems
  std::string_view marker;  ///< matplotlib's letter

  bool has(std::string_view option) const;
  bool has(ScheduleKind kind) const;
  /// Its kind is one of the system's, its rule for tokens if any, too.
  bool has(const ScheduleOptions& schedule) const;
  /// What a person may ask for: "auto, token_centric, dense_masked".
  std::string schedule_names() const;
  /// What its experts are in words, for messages: "FFN experts".
  std::string_view expert_words() const;
};

/// All of them, in the order of the paper's Table A, dense_mlp first.
std::span<const SystemTraits> system_traits();
const SystemTraits& traits_of(System system);

/// The order of work of a baseline's expert stage, as prepare_system() runs it: expert_centric in groups of
/// one expert for FFN experts, token_centric for product keys (which a backend may also run as dense_masked:
/// SystemInputs::schedule); dense_mlp, which has none, computes all.
ScheduleOptions system_schedule(System system);

/// Names of the systems that `has` holds for, "pkm, peer".
template <class Has>
std::vector<std::string_view> system_names(Has&& has) {
  std::vector<std::string_view> names;
  for (const SystemTraits& traits : system_traits()) {
    if (has(traits)) {
      names.push_back(traits.name);
    }
  }
  return names;
}

}  // namespace moescope
