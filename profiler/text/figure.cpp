#include "profiler/text/figure.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>

#include "core/base/error.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// First line that gnuplot wrote about its failure.
std::string first_line(const fs::path& file) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (line.find_first_not_of(" \t^") != std::string::npos) {
      return line;
    }
  }
  return "no message";
}

/// Exit status of `program script` run in `directory`, its output in `log`; 127 when there is no such
/// program.
int run_in(const fs::path& directory, const std::string& program, const std::string& script,
           const fs::path& log) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  posix_spawn_file_actions_addchdir_np(&actions, directory.c_str());
  std::string program_argument = program;
  std::string script_argument = script;
  std::array<char*, 3> arguments = {program_argument.data(), script_argument.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return 127;
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}

}  // namespace

FigureResult draw_figure(const Figure& figure, const fs::path& directory, const std::string& name,
                         const std::string& gnuplot) {
  FigureResult result;
  result.script = directory / (name + ".gp");
  result.image = directory / image_name(figure, name);
  {
    std::ofstream stream(result.script, std::ios::binary);
    stream << figure_script(figure, name) << std::flush;
    if (!stream) {
      throw FileError(result.script.string(), "", "cannot be written");
    }
  }
  for (const auto& panel : figure.panels) {
    if (!has_points(panel)) {
      result.reason = fmt::format("panel \"{}\" has no point to draw", panel.title);
      return result;
    }
  }
  std::error_code ignored;
  fs::remove(result.image, ignored);
  const fs::path log = fs::absolute(directory / (name + ".gp.log"));
  const int status = run_in(directory, gnuplot, name + ".gp", log);
  const std::string message = first_line(log);
  fs::remove(log, ignored);
  if (status == 127) {
    result.reason = fmt::format(
        "{} is not installed; after `apt-get install gnuplot-nox`, `gnuplot {}.gp` draws it", gnuplot, name);
  } else if (status != 0 || !fs::exists(result.image)) {
    fs::remove(result.image, ignored);
    result.reason = fmt::format("gnuplot failed with status {}: {}", status, message);
  } else {
    result.status = Status::kOk;
  }
  return result;
}

}  // namespace moescope
