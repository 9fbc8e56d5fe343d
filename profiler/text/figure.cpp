#include "profiler/text/figure.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <iterator>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/files/output_file.hpp"
#include "core/files/output_folder.hpp"

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

/// Whether an image has its end: gnuplot does not notice when the disk is full.
bool is_whole(const fs::path& image) {
  std::ifstream stream(image, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  const auto end = bytes.substr(0, bytes.find_last_not_of(" \n") + 1);
  return image.extension() == ".png" ? bytes.ends_with(std::string("IEND\xAE\x42\x60\x82"))
                                     : end.ends_with("</svg>");
}

/// Makes an SVG well-formed whose texts hold "]]>": XML wants its last character escaped, gnuplot leaves it.
void escape_section_ends(const fs::path& image) {
  std::ifstream stream(image, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(stream), {}};
  constexpr std::string_view kEnd = "]]>";
  if (image.extension() != ".svg" || bytes.find(kEnd) == std::string::npos ||
      bytes.find("<![CDATA[") != std::string::npos) {
    return;
  }
  for (std::size_t at = 0; (at = bytes.find(kEnd, at)) != std::string::npos;) {
    bytes.replace(at, kEnd.size(), "]]&gt;");
  }
  replace_file(image, bytes);
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

std::vector<std::string> figure_files(const std::string& name, bool png) {
  return {name + ".gp", name + (png ? ".png" : ".svg")};
}

FigureResult draw_figure(const Figure& figure, const fs::path& directory, const std::string& name,
                         const std::string& gnuplot) {
  FigureResult result;
  result.script = directory / (name + ".gp");
  result.image = directory / image_name(figure, name);
  replace_file(result.script, valid_utf8(figure_script(figure, name)));
  // An older one would be of other rows than the script beside it.
  std::error_code error;
  fs::remove(result.image, error);
  for (const auto& panel : figure.panels) {
    if (!has_points(panel)) {
      result.reason = fmt::format("panel \"{}\" has no point to draw", panel.title);
      return result;
    }
  }
  // Elsewhere first: what gnuplot leaves when it fails is no figure, and its log is nobody's file.
  const ScratchFolder scratch(directory);
  const fs::path drawn = scratch.path() / result.image.filename();
  const fs::path log = fs::absolute(scratch.path() / "log");
  const int status = run_in(scratch.path(), gnuplot, "../" + result.script.filename().string(), log);
  if (status == 127) {
    result.reason = fmt::format(
        "{} is not installed; after `apt-get install gnuplot-nox`, `gnuplot {}.gp` draws it", gnuplot, name);
  } else if (status != 0 || !is_whole(drawn)) {
    result.reason = fmt::format("gnuplot failed with status {}: {}", status, first_line(log));
  } else {
    escape_section_ends(drawn);
    fs::rename(drawn, result.image, error);
    result.status = error ? result.status : Status::kOk;
    result.reason =
        error ? fmt::format("{} cannot be written: {}", result.image.string(), error.message()) : "";
  }
  return result;
}

std::string figure_line(const FigureResult& figure) {
  return figure.status == Status::kOk ? fmt::format("figure: {}\n", figure.image.string())
                                      : fmt::format("figure: unavailable: {}\n", figure.reason);
}

}  // namespace moescope
