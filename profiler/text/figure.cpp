#include "profiler/text/figure.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/files/output_file.hpp"
#include "core/files/output_folder.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

/// Colours of Okabe and Ito (2008), told apart by colour-blind readers too.
constexpr std::array<std::string_view, 8> kColours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7",
                                                      "#E69F00", "#56B4E9", "#F0E442", "#000000"};

/// A gnuplot string in double quotes; control characters would end the line.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
    }
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

const char* extension(const Figure& figure) { return figure.png ? ".png" : ".svg"; }

bool drawable(const FigurePanel& panel, double x, double y) {
  return std::isfinite(x) && std::isfinite(y) && (!panel.log_x || x > 0) && (!panel.log_y || y > 0);
}

bool drawable(const FigurePanel& panel, const FigureSeries& series) {
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (drawable(panel, series.x[i], series.y[i])) {
      return true;
    }
  }
  return false;
}

/// Lines that the axis' names, drawn at an angle, and the key, two columns at the least, take below a panel.
int bottom_lines(const FigurePanel& panel) {
  std::size_t longest = 0;
  for (const std::string& name : panel.x_names) {
    longest = std::max(longest, name.size());
  }
  const auto entries = std::ranges::count_if(panel.series, [](const auto& s) { return !s.label.empty(); });
  return static_cast<int>(4 + (entries + 1) / 2 + static_cast<std::ptrdiff_t>(longest / 4));
}

void append_x_axis(std::string& out, const FigurePanel& panel) {
  out += fmt::format("set bmargin {}\nset xtics autofreq norotate\nset autoscale x\n", bottom_lines(panel));
  if (!panel.x_names.empty()) {
    std::vector<std::string> ticks;
    for (std::size_t i = 0; i < panel.x_names.size(); ++i) {
      ticks.push_back(fmt::format("{} {}", quoted(panel.x_names[i]), i));
    }
    out += fmt::format("set xtics rotate by -25 ({})\nset xrange [-0.3:{}]\n", fmt::join(ticks, ", "),
                       static_cast<double>(panel.x_names.size()) - 0.7);
  }
}

void append_panel(std::string& out, const FigurePanel& panel, int panel_index) {
  out += fmt::format("set title {}\nset xlabel {}\nset ylabel {}\n", quoted(panel.title),
                     quoted(panel.x_label), quoted(panel.y_label));
  out += "unset logscale\n";
  out += panel.log_y ? "set autoscale y\nset logscale y\n" : "set yrange [0:*]\n";
  out += panel.log_x ? "set logscale x\n" : "";
  append_x_axis(out, panel);
  std::string plots;
  for (std::size_t s = 0; s < panel.series.size(); ++s) {
    const FigureSeries& series = panel.series[s];
    if (series.x.size() != series.y.size() ||
        (!series.tags.empty() && series.tags.size() != series.x.size()) ||
        series.tag_x.size() != series.tag_y.size() ||
        (!series.tag_x.empty() && series.tag_x.size() != series.tags.size())) {
      throw InternalError(fmt::format("figure series \"{}\" has {} x, {} y, {} tags", series.label,
                                      series.x.size(), series.y.size(), series.tags.size()));
    }
    if (!drawable(panel, series)) {
      continue;
    }
    const std::string block = fmt::format("$panel{}_series{}", panel_index, s);
    out += block + " << END_OF_DATA\n";
    const bool placed = !series.tag_x.empty();
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (drawable(panel, series.x[i], series.y[i])) {
        out += fmt::format("{} {} {}{}\n", series.x[i], series.y[i],
                           quoted(series.tags.empty() ? "" : series.tags[i]),
                           placed ? fmt::format(" {} {}", series.tag_x[i], series.tag_y[i]) : "");
      }
    }
    out += "END_OF_DATA\n";
    const auto style =
        (series.colour < 0 ? s : static_cast<std::size_t>(series.colour)) % kColours.size() + 1;
    plots += fmt::format("{}{} using 1:2 with {} linestyle {}{} {}", plots.empty() ? "plot " : ", \\\n     ",
                         block,
                         !series.line    ? "points"
                         : series.points ? "linespoints"
                                         : "lines",
                         style, series.line ? "" : " pointsize 1.6",
                         series.label.empty() ? "notitle" : fmt::format("title {}", quoted(series.label)));
    if (!series.tags.empty() && placed) {
      plots += fmt::format(", \\\n     {} using 4:5:3 with labels left textcolor linestyle {} notitle", block,
                           style);
    } else if (!series.tags.empty()) {
      plots +=
          fmt::format(", \\\n     {} using 1:2:3 with labels left offset character 1,0.5 notitle", block);
    }
  }
  if (!plots.empty()) {
    out += plots + '\n';
  }
}

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

std::string figure_script(const Figure& figure, const std::string& name) {
  const auto panels = std::max<int>(1, static_cast<int>(figure.panels.size()));
  const int columns = figure.columns > 0 ? std::min(figure.columns, panels) : panels;
  const int rows = (panels + columns - 1) / columns;
  std::string out = fmt::format(
      "set terminal {} size {},{} noenhanced font \"sans,12\" background \"white\"\nset output {}\n"
      "set encoding utf8\nset grid xtics ytics mytics\nset format \"%g\"\nset key outside bottom center "
      "horizontal\nset pointsize 0.7\n",
      figure.png ? "pngcairo" : "svg", figure.panel_width * columns, figure.panel_height * rows,
      quoted(name + extension(figure)));
  for (std::size_t i = 0; i < kColours.size(); ++i) {
    out += fmt::format("set style line {} linecolor rgb \"{}\" linewidth 2 pointtype {}\n", i + 1,
                       kColours[i], 2 * (i % 4) + 5);
  }
  out += fmt::format("set multiplot layout {},{} title {}\n", rows, columns, quoted(figure.title));
  for (std::size_t p = 0; p < figure.panels.size(); ++p) {
    append_panel(out, figure.panels[p], static_cast<int>(p));
  }
  return out + "unset multiplot\n";
}

std::vector<std::string> figure_files(const std::string& name, bool png) {
  return {name + ".gp", name + (png ? ".png" : ".svg")};
}

FigureResult draw_figure(const Figure& figure, const fs::path& directory, const std::string& name,
                         const std::string& gnuplot) {
  FigureResult result;
  result.script = directory / (name + ".gp");
  result.image = directory / (name + extension(figure));
  replace_file(result.script, valid_utf8(figure_script(figure, name)));
  for (const auto& panel : figure.panels) {
    bool any = false;
    for (const auto& series : panel.series) {
      any = any || drawable(panel, series);
    }
    if (!any) {
      result.reason = fmt::format("panel \"{}\" has no point to draw", panel.title);
      return result;
    }
  }
  std::error_code error;
  fs::remove(result.image, error);
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
  } else if (fs::rename(drawn, result.image, error); error) {
    result.reason = fmt::format("{} cannot be written: {}", result.image.string(), error.message());
  } else {
    result.status = Status::kOk;
  }
  return result;
}

}  // namespace moescope
