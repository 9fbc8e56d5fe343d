#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/result.hpp"

namespace moescope {

/// One curve or cloud of points.
struct FigureSeries {
  std::string label;  ///< empty: not in the legend
  std::vector<double> x;
  std::vector<double> y;
  bool line = true;               ///< false: points alone, for what is no sweep
  std::vector<std::string> tags;  ///< empty, or one text per point, written beside it
  int colour = -1;  ///< index of a colour, so that series can share one; -1: by position in the panel
};

/// One pair of axes.
struct FigurePanel {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_y = false;  ///< points that are not > 0 are left out then
  std::vector<FigureSeries> series;
};

/// Panels side by side under one title.
struct Figure {
  std::string title;
  std::vector<FigurePanel> panels;
};

/// What became of a figure: ok with its file, or unavailable with the reason. A figure is never worth failing
/// for.
struct FigureResult {
  Status status = Status::kUnavailable;
  std::filesystem::path script;  ///< <directory>/<name>.gp, data inline: `gnuplot <name>.gp` draws it again
  std::filesystem::path image;   ///< <directory>/<name>.svg when ok
  std::string reason;
};

/// Text of the gnuplot script; it writes `<name>.svg` into the current directory.
std::string figure_script(const Figure& figure, const std::string& name);

/// Writes the script and runs `gnuplot` (a program name or path) on it. Throws FileError only when the script
/// cannot be written.
FigureResult draw_figure(const Figure& figure, const std::filesystem::path& directory,
                         const std::string& name, const std::string& gnuplot = "gnuplot");

}  // namespace moescope
