// What ranks say to each other, and how they end: no GPU needed.
#include "kernels/ranks/rank_protocol.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "kernels/ranks/cuda_ranks.hpp"

namespace moescope::cuda {
namespace {

TEST(RankCluster, TellsTheOthersThatThereIsNoMoreWork) {
  std::uint16_t port = 0;
  {
    port = RankNetwork::listen(2, "127.0.0.1", 0, kRankTimeout)->port();  // a free one
  }
  const pid_t other = fork();
  if (other == 0) {
    int code = 1;
    try {
      const auto network = RankNetwork::connect(1, 2, "127.0.0.1", port, rank_identity(), kRankTimeout);
      code = network->receive(0, true).word == RankWord::kEnd ? 0 : 2;
    } catch (const std::exception&) {
    }
    _exit(code);
  }
  (void)setenv("MOESCOPE_RANK", "0", 1);
  (void)setenv("MOESCOPE_RANKS", "2", 1);
  (void)setenv("MOESCOPE_PORT", std::to_string(port).c_str(), 1);
  {
    const RankCluster cluster(2);
    EXPECT_EQ(cluster.ranks(), 2);
    EXPECT_THROW((void)RankCluster(3), Error);  // another number than was started
  }
  (void)unsetenv("MOESCOPE_RANK");
  (void)unsetenv("MOESCOPE_RANKS");
  (void)unsetenv("MOESCOPE_PORT");
  int status = 0;
  ASSERT_EQ(waitpid(other, &status, 0), other);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(RankProtocol, ANumberThatIsCutShortIsRefused) {
  EXPECT_EQ(number_in(body_of(-7)), -7);
  Message cut = body_of(1);
  cut.pop_back();
  EXPECT_THROW((void)number_in(cut), InternalError);
}

}  // namespace
}  // namespace moescope::cuda
