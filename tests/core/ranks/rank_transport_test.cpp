#include "core/ranks/rank_transport.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

using test::error_text;

constexpr std::chrono::milliseconds kShort{100};

Message text(const std::string& words) {
  const auto* bytes = reinterpret_cast<const std::byte*>(words.data());
  return {bytes, bytes + words.size()};
}

/// Runs body(rank) on a thread a rank.
template <class Body>
void on_ranks(std::int64_t ranks, const Body& body) {
  std::vector<std::jthread> threads;
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&body, rank] { body(rank); });
  }
}

TEST(LoopbackTransport, BringsEveryMessageToItsRank) {
  for (const std::int64_t ranks : {1, 2, 5, 64}) {
    const auto transport = make_loopback_transport(ranks);
    std::atomic<int> wrong = 0;
    on_ranks(ranks, [&](std::int64_t rank) {
      for (int round = 0; round < 20; ++round) {
        std::vector<Message> sent;
        for (std::int64_t to = 0; to < ranks; ++to) {
          sent.push_back(text(std::to_string(rank * 100 + to) + "." + std::to_string(round)));
        }
        const auto got = transport->exchange(rank, Stage::kTokenDispatch, std::move(sent));
        for (std::int64_t from = 0; from < ranks; ++from) {
          wrong += got.at(static_cast<std::size_t>(from)) ==
                           text(std::to_string(from * 100 + rank) + "." + std::to_string(round))
                       ? 0
                       : 1;
        }
      }
    });
    EXPECT_EQ(wrong, 0) << ranks;
  }
}

TEST(LoopbackTransport, StopsWaitingForARankThatDoesNotCome) {
  const auto transport = make_loopback_transport(4, kShort);
  std::vector<std::string> said(4);
  const auto start = std::chrono::steady_clock::now();
  on_ranks(4, [&](std::int64_t rank) {
    if (rank == 3 || rank == 1) {
      return;
    }
    said[static_cast<std::size_t>(rank)] = error_text<RankFailure>(
        [&] { transport->exchange(rank, Stage::kTokenCombine, std::vector<Message>(4)); });
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  for (const std::size_t rank : {0U, 2U}) {
    EXPECT_EQ(said[rank], "rank 1, token_combine: did not come within 0.1 s (nor did others: 1, 3)");
  }
  // The latecomer is told the same.
  EXPECT_EQ(
      error_text<RankFailure>([&] { transport->exchange(1, Stage::kTokenCombine, std::vector<Message>(4)); }),
      said[0]);
}

TEST(LoopbackTransport, TellsEveryoneAtOnceOfARankThatFailed) {
  const auto transport = make_loopback_transport(3, std::chrono::seconds(60));
  std::vector<std::string> said(3);
  const auto start = std::chrono::steady_clock::now();
  on_ranks(3, [&](std::int64_t rank) {
    if (rank == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      transport->fail(2, Stage::kExperts, "killed by signal 9");
      return;
    }
    said[static_cast<std::size_t>(rank)] = error_text<RankFailure>(
        [&] { transport->exchange(rank, Stage::kTokenCombine, std::vector<Message>(3)); });
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_EQ(said[0], "rank 2, experts: killed by signal 9");
  EXPECT_EQ(said[1], said[0]);
}

TEST(LoopbackTransport, FindsRanksThatAreOutOfStep) {
  const auto transport = make_loopback_transport(2, std::chrono::seconds(60));
  std::vector<std::string> said(2);
  on_ranks(2, [&](std::int64_t rank) {
    if (rank == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    said[static_cast<std::size_t>(rank)] = error_text<RankFailure>([&] {
      transport->exchange(rank, rank == 0 ? Stage::kTokenDispatch : Stage::kTokenCombine,
                          std::vector<Message>(2));
    });
  });
  EXPECT_EQ(said[0], "rank 1, token_combine: others are at token_dispatch");
  EXPECT_EQ(said[1], said[0]);
  EXPECT_EQ(error_text<InvalidArgument>([] { make_loopback_transport(0); }), "ranks = 0: must be at least 1");
}

}  // namespace
}  // namespace moescope
