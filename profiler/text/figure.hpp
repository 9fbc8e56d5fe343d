#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/results/result.hpp"

namespace moescope {

/// One curve or cloud of points.
struct FigureSeries {
  std::string label;  ///< empty: not in the legend
  std::vector<double> x;
  std::vector<double> y;
  bool line = true;               ///< false: points alone, for what is no sweep
  std::vector<std::string> tags;  ///< empty, or one text per point, written beside it
  int colour = -1;     ///< index of a colour, so that series can share one; -1: by position in the panel
  bool points = true;  ///< false: a line alone, for a bound
  /// Empty, or where each tag stands instead of right beside its point; such tags have the series' colour.
  std::vector<double> tag_x = {};
  std::vector<double> tag_y = {};
};

/// One pair of axes.
struct FigurePanel {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_y = false;  ///< points that are not > 0 are left out then
  std::vector<FigureSeries> series;
  bool log_x = false;  ///< likewise
  /// Empty, or what stands below x = 0, 1, ... instead of numbers.
  std::vector<std::string> x_names = {};
};

/// Panels under one title, row by row.
struct Figure {
  std::string title;
  std::vector<FigurePanel> panels;
  int columns = 0;        ///< panels to a row; 0: all in one
  bool png = false;       ///< <name>.png instead of <name>.svg
  int panel_width = 560;  ///< pixels
  int panel_height = 520;
};

/// What became of a figure: ok with its file, or unavailable with the reason. A figure is never worth failing
/// for.
struct FigureResult {
  Status status = Status::kUnavailable;
  std::filesystem::path script;  ///< <directory>/<name>.gp, data inline: `gnuplot <name>.gp` draws it again
  std::filesystem::path image;   ///< <directory>/<name>.svg (or .png) when ok
  std::string reason;
};

/// Text of the gnuplot script; it writes the image into the current directory.
std::string figure_script(const Figure& figure, const std::string& name);

/// The files that draw_figure() makes.
std::vector<std::string> figure_files(const std::string& name, bool png = false);

/// Writes the script and runs `gnuplot` (a program name or path) on it. Throws FileError only when the script
/// cannot be written.
FigureResult draw_figure(const Figure& figure, const std::filesystem::path& directory,
                         const std::string& name, const std::string& gnuplot = "gnuplot");

}  // namespace moescope
