#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/results/result.hpp"

namespace moescope {

/// Look of bounds and of what is the same under every schedule: grey.
inline constexpr std::string_view kReferenceLook = "reference";

/// Something known of a point, for whoever asks for it: "spread", "2.1 %".
struct FigureFact {
  std::string name;
  std::string text;
};

/// One curve or cloud of points. All texts of a figure may be anything: they are drawn as they are, what
/// cannot be seen by its code (one_line()).
struct FigureSeries {
  std::string label;  ///< empty: not in the legend
  std::vector<double> x;
  std::vector<double> y;
  bool line = true;               ///< false: points alone, for what is no sweep
  std::vector<std::string> tags;  ///< empty, or one text per point, written beside it
  /// What its colour and marker stand for: a schedule's name (schedule_info.hpp) or kReferenceLook have their
  /// own, other names get those that no series of the figure has, as long as there are any. Empty: its label.
  std::string look = {};
  /// Empty, or what its marker stands for instead, e.g. a workload whose points have the colours of
  /// schedules.
  std::string marker = {};
  int variant = 0;     ///< tells apart series that share a look, e.g. of two runs: dashes of a line
  bool points = true;  ///< false: a line alone, for a bound
  /// Empty, or where each tag stands instead of right beside its point; such tags have the series' colour.
  std::vector<double> tag_x = {};
  std::vector<double> tag_y = {};
  /// Empty, or what is known of each point: pages show it, images do not.
  std::vector<std::vector<FigureFact>> facts = {};
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
  int panel_width = 560;  ///< pixels, at least: a panel with many names below its axis is wider
  int plot_height = 330;  ///< pixels between the axes; title, names and legend come on top
};

/// What became of a figure: ok with its file, or unavailable with the reason. A figure is never worth failing
/// for.
struct FigureResult {
  Status status = Status::kUnavailable;
  std::filesystem::path script;  ///< <directory>/<name>.gp, data inline: `gnuplot <name>.gp` draws it again
  std::filesystem::path image;   ///< <directory>/<name>.svg (or .png) when ok
  std::string reason;
};

/// Where it lies, or why it could not be drawn: a line of a command's output.
std::string figure_line(const FigureResult& figure);

/// Whether any of its series has a point that its axes can show.
bool has_points(const FigurePanel& panel);

/// "<name>.svg" or "<name>.png". Throws InternalError for names that are not lower-case letters, digits, '-'
/// and '_'.
std::string image_name(const Figure& figure, const std::string& name);

/// Text of the gnuplot script; it writes the image into the current directory. Names reach gnuplot as data
/// only: in the script they consist of letters, digits and harmless punctuation, all else is an octal escape,
/// so that nothing in a name can end a string, start a command or be substituted.
std::string figure_script(const Figure& figure, const std::string& name);

/// The files that draw_figure() makes.
std::vector<std::string> figure_files(const std::string& name, bool png = false);

/// Writes the script and runs `gnuplot` (a program name or path) on it. Throws FileError only when the script
/// cannot be written.
FigureResult draw_figure(const Figure& figure, const std::filesystem::path& directory,
                         const std::string& name, const std::string& gnuplot = "gnuplot");

}  // namespace moescope
