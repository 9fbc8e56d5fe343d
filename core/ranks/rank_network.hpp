#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/error.hpp"
#include "core/layer/stage.hpp"
#include "core/ranks/rank_transport.hpp"

/// Ranks that are processes: a star of TCP connections with rank 0 in its centre. It carries what is said
/// once a run (tasks, handles, times, errors), not the layer's data.
namespace moescope {

/// What a message is about.
enum class RankWord : std::uint32_t {
  kHello,    ///< of a rank that connects: its number, and what has to be the same everywhere
  kTask,     ///< a layer to prepare
  kRun,      ///< run it once
  kOutput,   ///< give the output of its tokens
  kRouting,  ///< give the selection of its tokens
  kDrop,     ///< forget a layer
  kShare,    ///< a part of an all-gather
  kAnswer,   ///< what was asked for
  kFailed,   ///< a rank could not: exit code, stage and text
  kEnd,      ///< no more work
};

struct RankMessage {
  RankWord word = RankWord::kAnswer;
  Message body;
};

/// How long a rank waits for another: MOESCOPE_RANK_TIMEOUT, seconds, or kRankTimeout. Throws
/// InvalidArgument("MOESCOPE_RANK_TIMEOUT", ...) for what is no positive number.
std::chrono::milliseconds rank_timeout();

/// One end of the star. Not for several threads. Every call that waits gives up when a rank is gone (at
/// once), or is silent for longer than the timeout, and throws RankFailure with that rank and the stage last
/// set.
class RankNetwork {
 public:
  ~RankNetwork();
  RankNetwork(const RankNetwork&) = delete;
  RankNetwork& operator=(const RankNetwork&) = delete;

  /// Rank 0: listens on `address` before ranks are started. `port` 0: any free one.
  static std::unique_ptr<RankNetwork> listen(std::int64_t ranks, const std::string& address,
                                             std::uint16_t port, std::chrono::milliseconds timeout);
  /// Another rank: connects, trying until the time is over, and says `identity`.
  static std::unique_ptr<RankNetwork> connect(std::int64_t rank, std::int64_t ranks,
                                              const std::string& address, std::uint16_t port,
                                              std::string_view identity, std::chrono::milliseconds timeout);

  std::int64_t rank() const { return rank_; }
  std::int64_t ranks() const { return ranks_; }
  std::uint16_t port() const { return port_; }
  std::chrono::milliseconds timeout() const { return timeout_; }

  /// Rank 0: waits for all others. `gone()`: a rank that ended before it came, or -1. Throws RankFailure for
  /// one that does not come, InvalidArgument("ranks", ...) for one whose identity differs.
  void accept(std::string_view identity, const std::function<std::int64_t()>& gone);

  /// What messages of failures name from now on.
  void set_stage(Stage stage) { stage_ = stage; }
  Stage stage() const { return stage_; }

  /// To one rank (from rank 0), or to rank 0.
  void send(std::int64_t to, RankWord word, std::span<const std::byte> body);
  /// Rank 0: to all others.
  void send_all(RankWord word, std::span<const std::byte> body = {});
  /// The next message of a rank; `patient`: waits for it without an end. A kFailed message is thrown as the
  /// error it holds.
  RankMessage receive(std::int64_t from, bool patient = false);
  /// The body of the next message, which has to be `word`.
  Message expect(std::int64_t from, RankWord word);
  /// Every rank's part, in order of the ranks, on every rank. All call it together.
  std::vector<Message> all_gather(std::span<const std::byte> mine);
  /// Throws if a rank is gone or has said that it failed; never waits. What else has come stays for
  /// receive().
  void check();

 private:
  struct Peer;
  RankNetwork(std::int64_t rank, std::int64_t ranks, std::chrono::milliseconds timeout);
  Peer& peer(std::int64_t rank) const;
  /// Reads what is there. False when the connection has ended.
  static bool read_available(Peer& peer);
  [[noreturn]] void lost(std::int64_t rank, std::string_view what) const;
  void raise_failures(const Peer& peer) const;

  std::int64_t rank_;
  std::int64_t ranks_;
  std::chrono::milliseconds timeout_;
  std::uint16_t port_ = 0;
  int listener_ = -1;
  Stage stage_ = Stage::kLayer;
  std::vector<std::unique_ptr<Peer>> peers_;  ///< rank 0: [P], itself null; others: rank 0 alone
};

/// Body of a kFailed message: receive() throws an Error of that exit code and text.
Message failure_message(ExitCode code, std::string_view text);

}  // namespace moescope
