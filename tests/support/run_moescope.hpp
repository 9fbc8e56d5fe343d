#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "core/base/error.hpp"
#include "tests/support/openmp_left_behind.hpp"
#include "tests/support/paths.hpp"
#include "tests/support/temporary_directory.hpp"

/// Runs the real program in a directory of its own.
namespace moescope::test {

struct Outcome {
  int code = -1;  ///< exit code, or minus the signal that ended it
  std::string out;
  std::string err;
};

/// Where the program's standard streams go, when not into files of its directory.
struct Streams {
  std::string out;          ///< a file or device
  std::string err;          ///< likewise
  std::vector<int> closed;  ///< descriptors that are not open at all
};

/// `moescope arguments...` started in `directory`, its output in files there.
class RunningMoescope {
 public:
  RunningMoescope(std::vector<std::string> arguments, const TemporaryDirectory& directory,
                  const Streams& streams = {})
      : out_(streams.out.empty() ? (directory.path() / "stdout.txt").string() : streams.out),
        err_(streams.err.empty() ? (directory.path() / "stderr.txt").string() : streams.err) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    for (const int descriptor : streams.closed) {
      posix_spawn_file_actions_addclose(&actions, descriptor);
    }
    posix_spawn_file_actions_addchdir_np(&actions, directory.path().c_str());
    arguments.insert(arguments.begin(), moescope_binary());
    std::vector<char*> argv;
    for (std::string& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    if (posix_spawn(&child_, moescope_binary().c_str(), &actions, nullptr, argv.data(), environ) != 0) {
      ADD_FAILURE() << "cannot start " << moescope_binary();
      child_ = -1;
    }
    posix_spawn_file_actions_destroy(&actions);
  }

  bool ended() const {
    siginfo_t info{};
    return child_ <= 0 ||
           (waitid(P_PID, static_cast<id_t>(child_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            info.si_pid == child_);
  }
  void kill() const {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
    }
  }
  Outcome wait() const {
    int status = 0;
    if (child_ <= 0 || waitpid(child_, &status, 0) != child_) {
      return {};
    }
    remove_openmp_registration(child_);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), written(out_), written(err_)};
  }

 private:
  /// A device does not give back what it took.
  static std::string written(const std::string& file) {
    return file.starts_with("/dev/") ? std::string() : read_text(file);
  }

  std::string out_;
  std::string err_;
  pid_t child_ = -1;
};

inline Outcome run_moescope(std::vector<std::string> arguments, const TemporaryDirectory& directory,
                            const Streams& streams = {}) {
  return RunningMoescope(std::move(arguments), directory, streams).wait();
}

inline int code_of(ExitCode code) { return static_cast<int>(code); }

/// A sweep of experiment.json that says nothing and writes to `output`.
inline std::vector<std::string> sweep_into(const std::string& output) {
  return {"sweep", "experiment.json", "--quiet", "--threads", "1", "--output", output};
}

/// A shape that any command is done with at once.
inline std::vector<std::string> small(std::vector<std::string> arguments) {
  for (const char* more :
       {"-L", "32", "-d", "16", "--grid", "8x6", "-K", "4", "--min-samples", "3", "--max-time", "0.01"}) {
    arguments.emplace_back(more);
  }
  return arguments;
}

}  // namespace moescope::test
