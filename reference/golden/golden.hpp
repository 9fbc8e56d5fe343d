#pragma once

#include <filesystem>
#include <string>

#include "core/backend/moe_backend.hpp"
#include "core/files/safetensors.hpp"
#include "core/results/result.hpp"

namespace moescope {

/// Largest error that a replay may show (DESIGN section 9).
inline constexpr double kGoldenTolerance = 1e-5;

/// Outcome of replaying one file of recorded inputs and outputs of an implementation from elsewhere.
struct GoldenResult {
  std::string kind;  ///< "omnimoe, with gradients", "router", or a baseline system; of peer with the gates
                     ///< that reproduce it
  Status status = Status::kFailed;  ///< kOk or kFailed
  std::string reason;               ///< why it failed; empty when ok
  double max_relative_error = -1;   ///< max |ours - theirs| / max |theirs|, the worst of all outputs
};

/// Replays a golden .npz in fp32 on the CPU.
/// omnimoe: the whole layer (router with batch norm folded in, experts under every schedule, shared MLP)
/// against y; and, where the file has dy, its backward under every schedule and SaveMode against grad.*.
/// router: the selected sets (exactly), scores, and gates of both modes. Baselines: the whole layer against
/// y. Throws FileError when the file cannot be read, is none of these kinds, or its arrays do not fit
/// together.
GoldenResult replay_golden(const std::filesystem::path& file);
/// The same of a file that has been read; `path` names it in messages.
GoldenResult replay_golden(const std::string& path, ArrayFile file);

/// Replays the golden file of a baseline system on `backend`, in fp32 as above. Throws FileError also for a
/// file of another kind, and what the backend throws.
GoldenResult replay_golden_system(const std::filesystem::path& file, MoeBackend& backend);

}  // namespace moescope
