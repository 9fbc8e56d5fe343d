#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "core/layer/stage.hpp"
#include "core/ranks/rank_report.hpp"
#include "core/schedule/schedule.hpp"
#include "core/schedule/token_assignment.hpp"
#include "core/systems/system.hpp"

namespace moescope {

/// State of the last-level cache before a timed run. kCold: a buffer larger than the cache is written first.
enum class L2State : std::uint8_t { kCold, kWarm };
std::string_view to_string(L2State state);

/// Time of one stage in one run. CUDA: event pairs; CPU: steady_clock.
struct StageTime {
  Stage stage;
  double time_s;
};

/// Peak memory a stage needs beside weights, inputs, output and the routing itself; accounted by the owner.
struct StageMemory {
  Stage stage;
  std::int64_t workspace_bytes;
};

/// What a run saw of the machine; unavailable readings are negative.
struct ClockSample {
  double sm_clock_hz = -1;
  double sm_clock_max_hz = -1;
  double temperature_c = -1;
};

/// What the stages of a layer hand on, in host memory: for LayerExecution::run_alone() what a stage reads,
/// and what it left. Which members count depends on the stage.
struct StageData {
  RouterLogits logits;
  Routing routing;            ///< of what ran: the set that was used, with its gates
  Schedule schedule;          ///< for `routing`
  std::vector<float> scores;  ///< p = gate * sigma(x . w_in[e]) per pair of `routing`, fp32, in CSR order [M]
  HostTensor
      y;  ///< [L,d] of the experts or of the shared MLP alone; fp32, or rounded to storage by the stage
  std::string kernels;  ///< what ran, in order: "router_select_strips + schedule_strips + ..."
};

/// A layer that is loaded, scheduled by `options` and can be run again and again (safe to replay: what a run
/// accumulates into, it clears). Holds references into the LayerInputs it was prepared from.
class LayerExecution {
 public:
  virtual ~LayerExecution() = default;
  /// Runs all stages in order and blocks until they are done. The last entry is Stage::kLayer. A backend that
  /// overlaps stages runs the layer twice: stage by stage for the stages' times, and as it is meant to run
  /// for the layer's.
  virtual std::vector<StageTime> run(L2State l2) = 0;
  /// Output of the last run, [L, d] in shape.dtype.
  virtual HostTensor output() = 0;
  /// Routing of the last run (computed by the router, or the fixed one).
  virtual Routing routing() = 0;
  /// Of a layer with a TokenRule: which of its pairs the last run gave to experts. Null: all of them.
  virtual const TokenAssignment* assignment() const { return nullptr; }
  virtual std::vector<StageMemory> memory() const = 0;
  virtual ClockSample clocks() const { return {}; }
  /// The schedule that ran (kAuto resolved) and whether its output is bit-identical from run to run.
  virtual ScheduleOptions schedule_options() const = 0;
  /// Why kAuto resolved to that: a line, then one for each candidate. Empty for a schedule that was named.
  virtual std::string explanation() const { return {}; }
  virtual bool deterministic() const = 0;

  /// For profilers that bracket stages themselves; nothing of this is on run()'s path. The stages in order,
  /// without kLayer.
  virtual std::span<const Stage> stages() const = 0;
  /// Starts one stage. It reads what the stages before it left, so all of them are run in order, as often as
  /// one likes.
  virtual void enqueue(Stage stage) = 0;
  /// Blocks until everything enqueued is done.
  virtual void synchronize() = 0;
  /// Leaves nothing of the layer in the last-level cache. Unlike before a cold run() no line there waits to
  /// be written back: counters would charge it to the stage that evicts it.
  virtual void empty_cache() = 0;

  /// Of a layer on several ranks, what its last run did on each; null for one on one device.
  virtual const RankReport* rank_report() const { return nullptr; }

  /// In words the kernels that `stage` runs, kLayer: those of all stages. Empty where a layer does not say.
  virtual std::string kernels(Stage /*stage*/) const { return {}; }
  /// Runs one of stages() alone, on the road that run() takes, from what `given` holds (of another backend,
  /// say) in place of what the stages before it leave. It reads: router_project and shared_mlp nothing,
  /// router_select logits, later stages the routing - or the logits, where the layer goes on from these and
  /// lists no pairs; then result.routing is its own selection from them - and expert_combine also scores. It
  /// leaves logits, routing, schedule, scores or y; y of expert stages is without the shared MLP. Later runs
  /// are as before. Throws InvalidArgument for what does not fit, InternalError where a layer cannot do this.
  virtual StageData run_alone(Stage stage, const StageData& given);
};

class TrainingExecution;  // core/backend/training_execution.hpp
struct TrainingOptions;   // core/layer/training.hpp

/// One implementation of the whole layer. All tensors are in host memory here. What comes before a layer is
/// prepared (routing, for its cost and for auto) is a function here; a prepared layer's stages are run alone
/// by LayerExecution::run_alone().
class MoeBackend {
 public:
  virtual ~MoeBackend() = default;
  /// "cpu" or "cuda", as in rows.
  virtual std::string_view name() const = 0;
  /// Human-readable device, e.g. "NVIDIA H200" or the CPU's model name.
  virtual std::string device() const = 0;
  /// False with a reason in `why` when this backend cannot run `kind` (e.g. sparse_library on the CPU).
  virtual bool supports(ScheduleKind kind, std::string& why) const = 0;
  /// False with a reason in `why` when it cannot run this layer under these options (e.g. rows alone of an
  /// fp32 layer on a GPU), though it may run others of the kind.
  virtual bool supports_layer(const LayerInputs& inputs, const ScheduleOptions& options,
                              std::string& why) const;

  /// Eq. 9: logits [L,Nr], [L,Nc] fp32, bias added.
  virtual RouterLogits router_project(const LayerInputs& inputs) = 0;
  /// Eqs. 10-11: log-softmax, exact top K of the sums, gates. Throws InvalidArgument on NaN or infinite
  /// logits.
  virtual Routing router_select(const LayerShape& shape, const RouterLogits& logits) = 0;
  /// The schedule as this backend builds it (on the device where it is built there).
  virtual Schedule schedule(const Routing& routing, const ScheduleOptions& options) = 0;

  /// Loads the layer and builds what its runs need. Throws OutOfMemory before allocating.
  virtual std::unique_ptr<LayerExecution> prepare(const LayerInputs& inputs,
                                                  const ScheduleOptions& options) = 0;
  /// The same where the caller has the inputs' routing already: auto chooses by it instead of computing it
  /// again. Runs compute their own.
  virtual std::unique_ptr<LayerExecution> prepare_routed(const LayerInputs& inputs,
                                                         const ScheduleOptions& options,
                                                         const Routing& routing);

  /// False with a reason in `why` when this backend cannot run this layer's backward (none can until it says
  /// otherwise).
  virtual bool supports_training(const LayerInputs& inputs, const ScheduleOptions& options,
                                 const TrainingOptions& training, std::string& why) const;
  /// Loads the layer with the gradient of its output (dy, [L,d] in storage dtype) and runs the forward once
  /// (training_execution.hpp). Throws InvalidArgument for what is not supported or does not fit
  /// (validate_training()), OutOfMemory before allocating. Keeps references to `inputs` and `dy`.
  virtual std::unique_ptr<TrainingExecution> prepare_training(const LayerInputs& inputs, const HostTensor& dy,
                                                              const ScheduleOptions& options,
                                                              const TrainingOptions& training);

  /// False with a reason in `why` when this backend cannot run a baseline (a backend has none until it says
  /// otherwise); kOmniMoe is what the functions above are for.
  virtual bool supports_system(System system, std::string& why) const;
  /// False with a reason in `why` when this backend gives FFN experts every pair and nothing else (a backend
  /// does until it says otherwise).
  virtual bool supports_token_rules(std::string& why) const;
  /// prepare_system(), for inputs that may have a rule for tokens. Throws InvalidArgument("schedule", ...)
  /// for one that the backend does not support, and what prepare_system() throws.
  std::unique_ptr<LayerExecution> prepare_ruled_system(const SystemInputs& inputs);
  /// Loads a baseline layer (DESIGN section 5). Its stages are those of an OmniMoE layer, as far as it has
  /// them; its routing() has one row per query (SystemShape::num_queries), none for dense_mlp;
  /// schedule_options().kind is kExpertCentric with groups of one expert for FFN experts, kDenseMasked for
  /// dense_mlp, and of product keys what inputs.schedule says: kTokenCentric, kDenseMasked where the backend
  /// has it, and for kAuto the one it takes for the faster (explanation() says why). Throws InvalidArgument
  /// for a system that is not supported or inputs that do not fit, OutOfMemory before allocating. Keeps a
  /// reference to `inputs`.
  virtual std::unique_ptr<LayerExecution> prepare_system(const SystemInputs& inputs);
};

}  // namespace moescope
