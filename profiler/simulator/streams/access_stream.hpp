#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/base/gpu_traits.hpp"
#include "core/layer/stage.hpp"
#include "core/layer/training.hpp"
#include "core/schedule/schedule.hpp"
#include "core/systems/system.hpp"
#include "profiler/simulator/streams/stream_constants.hpp"

/// What the kernels of a layer ask of memory, in the order in which they ask: launches of work units, and
/// each unit's accesses as bursts of rows. Made from the same schedules and tile arithmetic that the kernels
/// use.
namespace moescope {

enum class AccessKind : std::uint8_t {
  kRead,        ///< from L2, around L1 (cp.async.cg, TMA)
  kReadCached,  ///< through L1 (ld.global.nc)
  kWrite,       ///< stored through to L2
  kReduce,      ///< added to in L2 (red.global, bulk reductions)
  kReduceKept   ///< likewise, by a line that other data shall not push out of L2 (evict_last)
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
  double tensor_flop = 0;      ///< executed on tensor cores, masked-out products included
  double cuda_core_flop = 0;   ///< fp32 multiply-adds (as 2) outside them
  double instructions = 0;     ///< warp instructions, where issuing them can bound the kernel
  double multicast_bytes = 0;  ///< received beside `bursts`: what another block of the cluster asked L2 for
  double clocks = 0;           ///< least time by the kernel's own pace, in clocks of the multiprocessor
  double dependent_steps = 0;  ///< times the block waits for a whole trip to memory before it can go on
  double chain_steps = 0;  ///< times as long as a trip to L2 that it waits for itself, wherever its data lie

  void clear();
};

/// Names of first kernels of expert stages by which others tell how a layer ends.
inline constexpr const char* kTokenPairs = "token pairs";
inline constexpr const char* kClearSums = "clear sums";

/// One kernel. Units are taken in order by whichever block slot is free: by the hardware's block scheduler,
/// or by persistent blocks from a counter.
/// What a kernel lets run beside its stage when the layer runs as a whole.
enum class Overlap : std::uint8_t {
  kSharedMlp,  ///< the shared MLP: its result is added behind the stage
  kNone,       ///< nothing: the stage itself adds the shared MLP's result
  kSchedule,   ///< the schedule, of which the kernel needs nothing; the stage adds the shared MLP's result
  kDgrad,      ///< of a backward's weight gradients: the kernel itself runs beside the data gradients
};

struct KernelLaunch {
  Stage stage = Stage::kExperts;
  std::string name;
  std::int64_t units = 0;
  std::int64_t blocks_per_sm = 1;
  /// Replaces `unit` by what unit number `index` does. May be called from several threads, for any index.
  std::function<void(std::int64_t index, WorkUnit& unit)> fill;
  /// Instructions, which come from HBM once where L2 was emptied before; 0 for a kernel that ran before.
  std::int64_t code_bytes = 0;
  Overlap overlap = Overlap::kSharedMlp;
  /// Launched so that it starts while its predecessor ends (programmatic dependent launch).
  bool dependent = false;
};

/// Which kernels run the staircase schedule. Whether sums are bit-repeatable is the schedule's to say.
enum class StaircaseKernels : std::uint8_t {
  /// Lists of pairs. Repeatable: tiles that score (stage expert_scores), then a pass by token
  /// (expert_combine); otherwise one kernel that adds to y with fp32 atomics.
  kLists,
  /// Strips straight from the router's scores, by one kernel that adds scaled sums: int32 when repeatable,
  /// else fp16.
  kThresholds
};

/// What the kernels take from the device they run on, and what can be varied to ask "what if".
struct StreamOptions {
  GpuTraits gpu;
  StreamConstants constants;
  StaircaseKernels staircase = StaircaseKernels::kThresholds;  ///< where kernels and routing allow it
  std::int64_t strip_segment_experts = 0;  ///< experts of a strip in one work unit; 0: as the kernels choose
};

/// Launches of the whole layer in order: the stages that the GPU backend runs for this schedule (kAuto and
/// kSparseLibrary: InvalidArgument). `routing` and `schedule` must outlive the launches; `fixed_routing`: it
/// was recorded, so there are no router stages. Addresses are of a made-up layout in which tensors follow one
/// another. Throws InvalidArgument as LayerShape::validate(), for a hidden_size that the kernels do not
/// take, for a staircase of rows alone where they take lists of pairs, and for constants that are not
/// known().
std::vector<KernelLaunch> layer_stream(const LayerShape& shape, const Routing& routing,
                                       const Schedule& schedule, const StreamOptions& options,
                                       bool fixed_routing = false);

/// The backward of the same layer: the stages of the GPU backend's TrainingExecution (kernels/training/),
/// with those of the forward that run again under `training.save`. Throws as layer_stream(), and
/// InvalidArgument for what has no stream: auxiliary losses, batch norm, a staircase without a router or in
/// fp32.
std::vector<KernelLaunch> training_stream(const LayerShape& shape, const Routing& routing,
                                          const Schedule& schedule, const TrainingOptions& training,
                                          const StreamOptions& options, bool fixed_routing = false);

/// The same of a baseline, as the GPU backend runs it (kernels/systems/): FFN experts as expert_centric,
/// product keys as token_centric or dense_masked, a dense MLP as all at once (dense_masked). `routing` has a
/// row per query; nothing has to outlive the launches. Throws InvalidArgument as SystemShape::validate(), and
/// for an order of work, storage or extent that those kernels do not have.
/// `capacity`: rows that the products take of every expert, as TokenAssignment has it (routing then is of the
/// pairs that run); 0: each as many as it has.
std::vector<KernelLaunch> system_stream(const SystemShape& shape, const Routing& routing, ScheduleKind kind,
                                        const StreamOptions& options, bool fixed_routing = false,
                                        std::int64_t capacity = 0);

}  // namespace moescope
