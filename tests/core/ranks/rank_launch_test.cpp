#include "core/ranks/rank_launch.hpp"

#include <gtest/gtest.h>

#include <cstdlib>
#include <initializer_list>
#include <string>
#include <utility>

#include "tests/support/error_text.hpp"

namespace moescope {
namespace {

/// Sets variables of launchers; all others of theirs are unset.
void set_variables(std::initializer_list<std::pair<const char*, const char*>> variables) {
  for (const char* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                           "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_RANK", "PMI_SIZE", "SLURM_PROCID",
                           "SLURM_NTASKS", "SLURM_LOCALID", "MOESCOPE_RANK", "MOESCOPE_RANKS",
                           "MOESCOPE_PORT", "MASTER_ADDR", "MASTER_PORT", "MOESCOPE_RANK_TIMEOUT"}) {
    (void)unsetenv(name);
  }
  for (const auto& [name, value] : variables) {
    (void)setenv(name, value, 1);
  }
}

TEST(RankEnvironment, IsNothingWithoutALauncherOrWithOneProcess) {
  set_variables({});
  EXPECT_FALSE(rank_environment().has_value());
  set_variables({{"RANK", "0"}, {"WORLD_SIZE", "1"}});
  EXPECT_FALSE(rank_environment().has_value());
}

TEST(RankEnvironment, ReadsEveryLauncher) {
  set_variables({{"RANK", "3"},
                 {"WORLD_SIZE", "4"},
                 {"LOCAL_RANK", "1"},
                 {"MASTER_ADDR", "node7"},
                 {"MASTER_PORT", "29500"}});
  const auto found = rank_environment();
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->launcher, "torchrun");
  EXPECT_EQ(found->rank, 3);
  EXPECT_EQ(found->ranks, 4);
  EXPECT_EQ(found->local_rank, 1);
  EXPECT_EQ(found->address, "node7");
  EXPECT_EQ(found->port, 29501);

  set_variables({{"OMPI_COMM_WORLD_RANK", "1"},
                 {"OMPI_COMM_WORLD_SIZE", "2"},
                 {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                 {"MASTER_PORT", "4000"}});
  EXPECT_EQ(rank_environment()->launcher, "mpirun");
  EXPECT_EQ(rank_environment()->local_rank, 0);
  EXPECT_EQ(rank_environment()->address, "127.0.0.1");
  set_variables(
      {{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "2"}, {"MASTER_PORT", "4000"}});
  EXPECT_EQ(rank_environment()->launcher, "srun");
  EXPECT_EQ(rank_environment()->local_rank, 2);
  set_variables({{"SLURM_PROCID", "1"},
                 {"SLURM_NTASKS", "2"},
                 {"PMI_RANK", "1"},
                 {"PMI_SIZE", "2"},
                 {"MASTER_PORT", "4000"}});
  EXPECT_EQ(rank_environment()->rank, 1);  // two that agree
}

TEST(RankEnvironment, RefusesLaunchersThatContradictAndWhatIsNoNumber) {
  const auto refusal = [] { return test::error_text<Error>([] { (void)rank_environment(); }); };
  set_variables({{"RANK", "0"},
                 {"WORLD_SIZE", "2"},
                 {"SLURM_PROCID", "1"},
                 {"SLURM_NTASKS", "2"},
                 {"MASTER_PORT", "1"}});
  EXPECT_EQ(refusal(), "torchrun says rank 0 of 2, srun says rank 1 of 2: one of them has to go");
  set_variables({{"RANK", "first"}, {"WORLD_SIZE", "2"}});
  EXPECT_EQ(refusal(), "RANK = first: must be a number, 0 or more");
  set_variables({{"RANK", "2"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "1"}});
  EXPECT_EQ(refusal(), "RANK = 2: must be below WORLD_SIZE = 2");
  set_variables({{"RANK", "0"}, {"WORLD_SIZE", "2"}});
  EXPECT_EQ(refusal(),
            "torchrun says rank 0 of 2: MASTER_PORT must say where rank 0 listens (that port + 1), from 1 to "
            "65534");
  set_variables({});
}

TEST(RankEnvironment, TimeoutIsSeconds) {
  set_variables({});
  EXPECT_EQ(rank_timeout(), kRankTimeout);
  set_variables({{"MOESCOPE_RANK_TIMEOUT", "0.5"}});
  EXPECT_EQ(rank_timeout(), std::chrono::milliseconds(500));
  for (const char* wrong : {"soon", "0", "-1", "nan", "1e9"}) {
    set_variables({{"MOESCOPE_RANK_TIMEOUT", wrong}});
    EXPECT_EQ(test::error_text<InvalidArgument>([] { (void)rank_timeout(); }),
              std::string("MOESCOPE_RANK_TIMEOUT = ") + wrong + ": must be seconds, above 0 and at most 1e6");
  }
  set_variables({});
}

}  // namespace
}  // namespace moescope
