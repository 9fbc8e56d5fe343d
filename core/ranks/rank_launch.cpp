#include "core/ranks/rank_launch.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <thread>

// NOLINTNEXTLINE(readability-redundant-declaration): POSIX declares it nowhere
extern char** environ;

namespace moescope {
namespace {

struct Launcher {
  std::string_view name;
  const char* rank;
  const char* ranks;
  const char* local_rank;  ///< null: it says none
};
constexpr std::array kLaunchers = {
    Launcher{"moescope", "MOESCOPE_RANK", "MOESCOPE_RANKS", "MOESCOPE_RANK"},
    Launcher{"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"},
    Launcher{"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    Launcher{"MPI", "PMI_RANK", "PMI_SIZE", nullptr},
    Launcher{"srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"},
};

std::optional<std::int64_t> number(const char* name) {
  const char* const text = name == nullptr ? nullptr : std::getenv(name);
  if (text == nullptr || *text == '\0') {
    return std::nullopt;
  }
  std::int64_t value = 0;
  const char* const end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < 0) {
    throw Error(ExitCode::kUsage, fmt::format("{} = {}: must be a number, 0 or more", name, text));
  }
  return value;
}

}  // namespace

std::optional<RankEnvironment> rank_environment() {
  std::optional<RankEnvironment> found;
  for (const Launcher& launcher : kLaunchers) {
    const auto rank = number(launcher.rank);
    const auto ranks = number(launcher.ranks);
    if (!rank || !ranks || *ranks <= 1) {
      continue;
    }
    if (*rank >= *ranks) {
      throw Error(ExitCode::kUsage, fmt::format("{} = {}: must be below {} = {}", launcher.rank, *rank,
                                                launcher.ranks, *ranks));
    }
    if (found && (found->rank != *rank || found->ranks != *ranks)) {
      throw Error(ExitCode::kUsage,
                  fmt::format("{} says rank {} of {}, {} says rank {} of {}: one of them has to go",
                              found->launcher, found->rank, found->ranks, launcher.name, *rank, *ranks));
    }
    if (!found) {
      found = RankEnvironment{.launcher = std::string(launcher.name), .rank = *rank, .ranks = *ranks};
      found->local_rank = number(launcher.local_rank).value_or(*rank);
    }
  }
  if (!found) {
    return found;
  }
  if (const char* const address = std::getenv("MASTER_ADDR"); address != nullptr && *address != '\0') {
    found->address = address;
  }
  const auto own = number("MOESCOPE_PORT");
  const auto master = number("MASTER_PORT");
  constexpr std::int64_t kMostPort = 65535;
  const std::int64_t port = own ? *own : master ? *master + 1 : 0;
  if (port < 1 || port > kMostPort) {
    throw Error(
        ExitCode::kUsage,
        fmt::format(
            "{} says rank {} of {}: MASTER_PORT must say where rank 0 listens (that port + 1), from 1 "
            "to 65534",
            found->launcher, found->rank, found->ranks));
  }
  found->port = static_cast<std::uint16_t>(port);
  return found;
}

RankProcesses::RankProcesses(std::int64_t ranks, const std::string& address, std::uint16_t port) {
  std::array<char, 4096> self{};
  if (readlink("/proc/self/exe", self.data(), self.size() - 1) <= 0) {
    throw Error(ExitCode::kDeviceError, "ranks: /proc/self/exe does not say where this program is");
  }
  for (std::int64_t rank = 1; rank < ranks; ++rank) {
    std::vector<std::string> variables = {
        fmt::format("MOESCOPE_RANK={}", rank), fmt::format("MOESCOPE_RANKS={}", ranks),
        fmt::format("MOESCOPE_PORT={}", port), fmt::format("MASTER_ADDR={}", address)};
    std::vector<char*> environment;
    for (char** each = environ; *each != nullptr; ++each) {
      environment.push_back(*each);
    }
    for (std::string& variable : variables) {
      environment.insert(environment.begin(), variable.data());  // the first of a name counts
    }
    environment.push_back(nullptr);
    std::string name = "moescope";
    std::string flag = "--ranks";
    std::array<char*, 3> arguments = {name.data(), flag.data(), nullptr};
    pid_t process = -1;
    const int error =
        posix_spawn(&process, self.data(), nullptr, nullptr, arguments.data(), environment.data());
    if (error != 0) {
      throw Error(ExitCode::kDeviceError,
                  fmt::format("ranks: rank {} does not start: {}", rank, std::strerror(error)));
    }
    children_.push_back({process, true, 0});
  }
}

RankProcesses::~RankProcesses() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  const auto any = [&] {
    (void)ended();
    for (const Child& child : children_) {
      if (child.running) {
        return true;
      }
    }
    return false;
  };
  while (any() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (const Child& child : children_) {
    if (child.running) {
      (void)kill(child.process, SIGKILL);
      (void)waitpid(child.process, nullptr, 0);
    }
  }
}

std::int64_t RankProcesses::ended() {
  std::int64_t gone = -1;
  for (std::size_t i = 0; i < children_.size(); ++i) {
    Child& child = children_[i];
    if (child.running && waitpid(child.process, &child.status, WNOHANG) == child.process) {
      child.running = false;
    }
    if (!child.running && gone < 0) {
      gone = static_cast<std::int64_t>(i) + 1;
    }
  }
  return gone;
}

std::string RankProcesses::how(std::int64_t rank) const {
  const auto index = static_cast<std::size_t>(rank - 1);
  if (index >= children_.size() || children_[index].running) {
    return {};
  }
  const int status = children_[index].status;
  return WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                             : fmt::format("exit code {}", WEXITSTATUS(status));
}

}  // namespace moescope
