#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"

namespace moescope {

/// A rank ended early, stopped or got what it should not. Message: "rank 3, token_dispatch: <what>".
class RankFailure : public Error {
 public:
  RankFailure(std::int64_t rank, Stage stage, std::string_view what)
      : Error(ExitCode::kDeviceError, fmt::format("rank {}, {}: {}", rank, to_string(stage), what)) {}
};

/// What one rank hands to another.
using Message = std::vector<std::byte>;

/// Moves messages among ranks. Whatever implements it (memory of one process, NCCL), ranks call it together,
/// each from a thread or process of its own.
class RankTransport {
 public:
  virtual ~RankTransport() = default;
  virtual std::int64_t ranks() const = 0;
  /// Gives `sent[r]` to every rank r and returns what every rank r gave to this one; what a rank gives to
  /// itself comes back. Blocks until all are there. `stage` names the exchange in messages, and has to be the
  /// same on all ranks. Throws RankFailure, on every rank the same one, when a rank has failed, or one has
  /// not come when the time is over; from then on every call throws it.
  virtual std::vector<Message> exchange(std::int64_t rank, Stage stage, std::vector<Message> sent) = 0;
  /// Says that `rank` will not come any more: the others stop waiting at once.
  virtual void fail(std::int64_t rank, Stage stage, std::string_view why) = 0;
};

/// How long a rank waits for another.
inline constexpr std::chrono::milliseconds kRankTimeout{60'000};

/// Ranks that are threads of one process: messages are handed over, not copied.
std::unique_ptr<RankTransport> make_loopback_transport(std::int64_t ranks,
                                                       std::chrono::milliseconds timeout = kRankTimeout);

}  // namespace moescope
