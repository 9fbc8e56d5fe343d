#include <fmt/format.h>
#include <fmt/ranges.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "core/ranks/rank_transport.hpp"

namespace moescope {
namespace {

class LoopbackTransport final : public RankTransport {
 public:
  LoopbackTransport(std::int64_t ranks, std::chrono::milliseconds timeout)
      : timeout_(timeout),
        here_(static_cast<std::size_t>(ranks)),
        given_(static_cast<std::size_t>(ranks)),
        taken_(static_cast<std::size_t>(ranks)) {}

  std::int64_t ranks() const override { return std::ssize(here_); }

  std::vector<Message> exchange(std::int64_t rank, Stage stage, std::vector<Message> sent) override {
    std::unique_lock lock(mutex_);
    throw_failure();
    const auto me = static_cast<std::size_t>(rank);
    if (rank < 0 || rank >= ranks() || std::ssize(sent) != ranks() || here_[me]) {
      set_failure(rank, stage, "came twice, or with messages for another number of ranks");
      throw_failure();
    }
    if (arrived_ > 0 && stage != stage_) {
      set_failure(rank, stage, fmt::format("others are at {}", to_string(stage_)));
      throw_failure();
    }
    stage_ = stage;
    here_[me] = true;
    given_[me] = std::move(sent);
    const std::int64_t mine = round_;
    if (++arrived_ == ranks()) {
      deliver();
    } else if (!changed_.wait_for(lock, timeout_, [&] { return round_ != mine || failure_; })) {
      std::vector<std::size_t> missing;
      for (std::size_t r = 0; r < here_.size(); ++r) {
        if (!here_[r]) {
          missing.push_back(r);
        }
      }
      set_failure(
          static_cast<std::int64_t>(missing.front()), stage,
          fmt::format(
              "did not come within {:g} s{}", static_cast<double>(timeout_.count()) / 1000,
              missing.size() == 1 ? "" : fmt::format(" (nor did others: {})", fmt::join(missing, ", "))));
    }
    // A round that is complete is handed out even when a rank fails behind it: the others find out next time.
    if (round_ == mine) {
      throw_failure();
    }
    return std::move(taken_[me]);
  }

  void fail(std::int64_t rank, Stage stage, std::string_view why) override {
    const std::scoped_lock lock(mutex_);
    set_failure(rank, stage, why);
  }

 private:
  void deliver() {
    for (std::size_t to = 0; to < given_.size(); ++to) {
      taken_[to].clear();
      for (auto& from : given_) {
        taken_[to].push_back(std::move(from[to]));
      }
    }
    arrived_ = 0;
    here_.assign(here_.size(), false);
    ++round_;
    changed_.notify_all();
  }

  /// The first failure is the one that everybody tells.
  void set_failure(std::int64_t rank, Stage stage, std::string_view why) {
    if (!failure_) {
      failure_.emplace(rank, stage, why);
    }
    changed_.notify_all();
  }

  void throw_failure() const {
    if (failure_) {
      throw RankFailure(*failure_);
    }
  }

  std::chrono::milliseconds timeout_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::int64_t arrived_ = 0;
  std::int64_t round_ = 0;
  Stage stage_ = Stage::kLayer;
  std::vector<bool> here_;                   ///< who has come in this round
  std::vector<std::vector<Message>> given_;  ///< [from][to]
  std::vector<std::vector<Message>> taken_;  ///< [to][from], of the round before
  std::optional<RankFailure> failure_;
};

}  // namespace

std::unique_ptr<RankTransport> make_loopback_transport(std::int64_t ranks,
                                                       std::chrono::milliseconds timeout) {
  if (ranks < 1) {
    throw InvalidArgument("ranks", fmt::to_string(ranks), "must be at least 1");
  }
  return std::make_unique<LoopbackTransport>(ranks, timeout);
}

}  // namespace moescope
