#include "core/ranks/rank_network.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/openmp_left_behind.hpp"

namespace moescope {
namespace {

using Clock = std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr std::chrono::milliseconds kPatience = 20s;

Message bytes_of(const std::string& text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}
std::string text_of(const Message& message) {
  return {reinterpret_cast<const char*>(message.data()), message.size()};
}

/// Rank 0 here, the others processes that run `work` and end by its exit code.
class Star {
 public:
  template <class Work>
  Star(std::int64_t ranks, std::chrono::milliseconds timeout, const Work& work)
      : network_(RankNetwork::listen(ranks, "127.0.0.1", 0, timeout)) {
    for (std::int64_t rank = 1; rank < ranks; ++rank) {
      const pid_t process = fork();
      if (process == 0) {
        int code = 1;
        try {
          const auto network =
              RankNetwork::connect(rank, ranks, "127.0.0.1", network_->port(), "same", kPatience);
          work(*network);
          code = 0;
        } catch (const std::exception&) {
        }
        _exit(code);
      }
      processes_.push_back(process);
    }
  }
  Star(const Star&) = delete;
  Star& operator=(const Star&) = delete;
  ~Star() {
    network_.reset();
    for (const pid_t process : processes_) {
      if (process > 0) {
        (void)kill(process, SIGKILL);
        (void)waitpid(process, nullptr, 0);
        test::remove_openmp_registration(process);
      }
    }
  }

  RankNetwork& network() { return *network_; }
  pid_t process(std::int64_t rank) const { return processes_[static_cast<std::size_t>(rank - 1)]; }
  void close() { network_.reset(); }
  void accept(std::string_view identity = "same") {
    network_->accept(identity, [] { return std::int64_t{-1}; });
  }
  /// Exit code of a rank that ends within `most`; -1: it does not.
  int ends(std::int64_t rank, std::chrono::milliseconds most) {
    const auto end = Clock::now() + most;
    pid_t& process = processes_[static_cast<std::size_t>(rank - 1)];
    int status = 0;
    while (waitpid(process, &status, WNOHANG) != process) {
      if (Clock::now() > end) {
        return -1;
      }
      std::this_thread::sleep_for(1ms);
    }
    test::remove_openmp_registration(process);
    process = -1;
    return WEXITSTATUS(status);
  }

 private:
  std::unique_ptr<RankNetwork> network_;
  std::vector<pid_t> processes_;
};

/// Answers every order, until there are no more.
void serve(RankNetwork& network) {
  while (true) {
    const RankMessage order = network.receive(0, true);
    if (order.word == RankWord::kEnd) {
      return;
    }
    network.send(0, RankWord::kAnswer, order.body);
  }
}

TEST(RankNetwork, CarriesMessagesOfAnySizeInOrder) {
  Star star(3, kPatience, serve);
  star.accept();
  std::mt19937 random(1);
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{1}, std::size_t{70'000}, std::size_t{9'000'001}}) {
    Message sent(size);
    for (std::byte& byte : sent) {
      byte = static_cast<std::byte>(random());
    }
    star.network().send_all(RankWord::kRun, sent);
    star.network().send_all(RankWord::kRun, bytes_of("next"));
    for (const std::int64_t rank : {2, 1}) {
      EXPECT_EQ(star.network().expect(rank, RankWord::kAnswer), sent);
      EXPECT_EQ(text_of(star.network().expect(rank, RankWord::kAnswer)), "next");
    }
  }
  star.network().send_all(RankWord::kEnd);
  EXPECT_EQ(star.ends(1, kPatience), 0);
  EXPECT_EQ(star.ends(2, kPatience), 0);
}

TEST(RankNetwork, GathersEveryRanksPartInOrder) {
  const auto part = [](std::int64_t rank) { return bytes_of("part of " + std::to_string(rank)); };
  Star star(4, kPatience, [&](RankNetwork& network) {
    const std::vector<Message> all = network.all_gather(part(network.rank()));
    for (std::int64_t rank = 0; rank < 4; ++rank) {
      if (all.at(static_cast<std::size_t>(rank)) != part(rank)) {
        throw InternalError("another part");
      }
    }
  });
  star.accept();
  const std::vector<Message> all = star.network().all_gather(part(0));
  ASSERT_EQ(all.size(), 4U);
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    EXPECT_EQ(all[static_cast<std::size_t>(rank)], part(rank));
    if (rank > 0) {
      EXPECT_EQ(star.ends(rank, kPatience), 0) << rank;
    }
  }
}

TEST(RankNetwork, RefusesARankOfAnotherBuild) {
  Star star(2, kPatience, serve);
  try {
    star.accept("other");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "ranks = 2: rank 1 is another moescope: same (rank 0: other)");
  }
}

TEST(RankNetwork, ARankThatDoesNotComeIsNamed) {
  const auto network = RankNetwork::listen(3, "127.0.0.1", 0, 200ms);
  try {
    network->accept("same", [] { return std::int64_t{-1}; });
    FAIL();
  } catch (const RankFailure& error) {
    EXPECT_STREQ(error.what(), "rank 1, layer: did not come within 0.2 s");
  }
  try {
    network->accept("same", [] { return std::int64_t{2}; });
    FAIL();
  } catch (const RankFailure& error) {
    EXPECT_STREQ(error.what(), "rank 2, layer: ended before it came");
  }
}

TEST(RankNetwork, WhatARankReportsIsThrownAsItWasThere) {
  Star star(3, kPatience, [](RankNetwork& network) {
    if (network.rank() == 2) {
      network.send(0, RankWord::kFailed, failure_message(ExitCode::kOutOfMemory, "rank 2: too little"));
    }
    serve(network);
  });
  star.accept();
  try {
    (void)star.network().receive(1);  // which says nothing
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kOutOfMemory);
    EXPECT_STREQ(error.what(), "rank 2: too little");
  }
}

/// Orders and answers in turn until a rank is gone; the seconds after `broken` began.
template <class Break>
double seconds_to_failure(Star& star, std::int64_t rank, std::string_view what, const Break& broken) {
  std::mt19937 random(static_cast<unsigned>(star.process(1)));
  Clock::time_point from;
  std::jthread breaker([&, wait = std::chrono::microseconds(random() % 20'000)] {
    std::this_thread::sleep_for(wait);
    from = Clock::now();
    broken();
  });
  star.network().set_stage(Stage::kTokenCombine);
  try {
    while (true) {
      star.network().send_all(RankWord::kRun, bytes_of("an order"));
      for (std::int64_t other = 1; other < star.network().ranks(); ++other) {
        (void)star.network().expect(other, RankWord::kAnswer);
      }
    }
  } catch (const RankFailure& error) {
    breaker.join();
    EXPECT_EQ(std::string(error.what()), fmt::format("rank {}, token_combine: {}", rank, what));
  }
  return std::chrono::duration<double>(Clock::now() - from).count();
}

TEST(RankNetwork, ARankKilledAtAnyMomentIsNamedAtOnceAndTheOthersEnd) {
  for (int round = 0; round < 20; ++round) {
    Star star(3, kPatience, serve);
    star.accept();
    const std::int64_t rank = 1 + round % 2;
    const pid_t process = star.process(rank);
    EXPECT_LT(seconds_to_failure(star, rank, "ended", [&] { (void)kill(process, SIGKILL); }), 10.0);
    star.close();
    EXPECT_EQ(star.ends(3 - rank, 10s), 1);  // it sees that rank 0 has gone
  }
}

TEST(RankNetwork, ARankStoppedAtAnyMomentIsNamedWhenTheTimeIsOver) {
  for (int round = 0; round < 20; ++round) {
    Star star(3, 300ms, serve);
    star.accept();
    const std::int64_t rank = 1 + round % 2;
    const pid_t process = star.process(rank);
    const double seconds =
        seconds_to_failure(star, rank, "did not answer within 0.3 s", [&] { (void)kill(process, SIGSTOP); });
    EXPECT_GT(seconds, 0.2);
    EXPECT_LT(seconds, 10.3);
  }
}

TEST(RankNetwork, RanksEndWhenRankZeroIsGone) {
  Star star(3, kPatience, serve);
  star.accept();
  star.close();
  EXPECT_EQ(star.ends(1, 10s), 1);
  EXPECT_EQ(star.ends(2, 10s), 1);
}

}  // namespace
}  // namespace moescope
