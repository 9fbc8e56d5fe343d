#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/ranks/rank_launch.hpp"
#include "core/ranks/rank_network.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/ranks/rank_layer.hpp"

/// A layer on several GPUs, seen from rank 0: the others are processes that do what it says.
namespace moescope::cuda {

/// Rank 0 and the processes of the others.
class RankCluster {
 public:
  /// Starts the other ranks, or waits for those that a launcher has started. Throws Error (kUsage) where a
  /// launcher started another number, RankFailure, NoDevice where there are fewer GPUs than ranks.
  explicit RankCluster(std::int64_t ranks);
  RankCluster(const RankCluster&) = delete;
  RankCluster& operator=(const RankCluster&) = delete;
  /// Tells the others that there is no more work.
  ~RankCluster();

  std::int64_t ranks() const { return ranks_; }
  /// Throws the failure that ended it; nothing can be run any more.
  RankNetwork& network();
  /// Runs `work`; what it throws ends the cluster.
  template <class Work>
  auto guarded(const Work& work) {
    (void)network();  // whole
    try {
      return work();
    } catch (const Error& error) {
      end(error);
    }
  }
  std::int64_t next_id() { return next_id_++; }

  /// The weights that ranks have, made from these experts for these owners.
  struct Loaded {
    std::weak_ptr<const ExpertWeights> experts;
    std::vector<std::int32_t> owner;
    std::int64_t id = 0;
    std::shared_ptr<const RankWeightBuffers> own;
  };
  Loaded& loaded() { return loaded_; }

 private:
  [[noreturn]] void end(const Error& error);

  std::int64_t ranks_;
  std::int64_t next_id_ = 1;
  RankProcesses processes_;  ///< ended after the network is
  std::unique_ptr<RankNetwork> network_;
  Loaded loaded_;
  std::string failure_;
  ExitCode code_ = ExitCode::kOk;
};

/// False with a reason in `why` when several GPUs cannot run this layer.
bool supports_ranks(const LayerInputs& inputs, const ScheduleOptions& options, const GpuTraits& gpu,
                    std::string& why);

/// `routing`: of the inputs, for placements by counts. Throws what the above does, OutOfMemory,
/// InvalidArgument.
std::unique_ptr<LayerExecution> prepare_on_ranks(std::shared_ptr<RankCluster> cluster,
                                                 std::shared_ptr<DeviceContext> context,
                                                 const LayerInputs& inputs, const ScheduleOptions& options,
                                                 const Routing* routing);

/// What a process other than rank 0 does: what rank 0 says, until it ends. Returns the exit code.
ExitCode serve_rank(const RankEnvironment& environment);

}  // namespace moescope::cuda
