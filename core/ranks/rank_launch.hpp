#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/ranks/rank_network.hpp"

/// Who starts the processes of a layer on several ranks: a launcher (torchrun, mpirun, srun), or rank 0
/// itself.
namespace moescope {

/// What a launcher, or rank 0, has told this process.
struct RankEnvironment {
  std::string launcher;  ///< "torchrun", "mpirun", "MPI", "srun" or "moescope"
  std::int64_t rank = 0;
  std::int64_t ranks = 1;
  std::int64_t local_rank = 0;
  std::string address = "127.0.0.1";  ///< MASTER_ADDR
  std::uint16_t port = 0;  ///< that rank 0 listens at: MASTER_PORT + 1, for a launcher may hold that one
};

/// From RANK, WORLD_SIZE, LOCAL_RANK (torchrun), OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, PMI_RANK,
/// PMI_SIZE, SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID; address and port from MASTER_ADDR and MASTER_PORT.
/// Nothing without a launcher, and where there is one process alone. Throws Error (kUsage) where two of them
/// disagree, or a variable is no number or is missing.
std::optional<RankEnvironment> rank_environment();

/// Processes of this program that rank 0 has started. Their end is waited for; those that stay are killed.
class RankProcesses {
 public:
  RankProcesses() = default;
  /// Starts ranks 1 to `ranks` - 1 of /proc/self/exe, each with what rank_environment() reads.
  RankProcesses(std::int64_t ranks, const std::string& address, std::uint16_t port);
  RankProcesses(const RankProcesses&) = delete;
  RankProcesses& operator=(const RankProcesses&) = delete;
  RankProcesses(RankProcesses&& other) noexcept : children_(std::move(other.children_)) {}
  RankProcesses& operator=(RankProcesses&& other) noexcept {
    std::swap(children_, other.children_);
    return *this;
  }
  /// Gives them a second to end, then kills them.
  ~RankProcesses();

  /// A rank that has ended, or -1.
  std::int64_t ended();
  /// How it ended: "exit code 5", "signal 9"; empty for one that has not.
  std::string how(std::int64_t rank) const;

 private:
  struct Child {
    pid_t process = -1;
    bool running = false;
    int status = 0;
  };
  std::vector<Child> children_;  ///< of rank i + 1
};

}  // namespace moescope
