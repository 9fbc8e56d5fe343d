#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <numeric>

#include "core/base/error.hpp"
#include "core/base/line_text.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/figure_style.hpp"

namespace moescope {
namespace {

/// Pixels that a character of the font takes, on average and with its line.
constexpr double kCharWidth = 7.2;
constexpr int kLineHeight = 18;
constexpr std::size_t kMaxNameLength = 44;

/// A gnuplot string in double quotes. Nothing of `text` but letters, digits and the punctuation below stands
/// in the script as it is, so that no text can be more than text there: gnuplot runs what is in backquotes
/// inside double quotes and expands @ before it reads a line; octal escapes it turns into bytes only after
/// that. It reads up to four digits of an escape that begins with 0, so a digit behind one is escaped, too.
std::string gnuplot_string(std::string_view text) {
  constexpr std::string_view kHarmless = " _.,:;+-*/=()<>|~^!?&{}[]%";
  std::string out = "\"";
  bool escaped = false;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool digit = c >= '0' && c <= '9';
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    escaped = !letter && kHarmless.find(c) == std::string_view::npos && (!digit || escaped);
    out += escaped ? fmt::format("\\{:03o}", byte) : std::string(1, c);
  }
  return out + '"';
}

/// A name for the legend, the axis or a tag: a long one without its middle, which would push all else aside.
std::string short_name(std::string_view name) {
  const std::string text = one_line(name);
  if (text_width(text) <= kMaxNameLength) {
    return text;
  }
  constexpr std::size_t kHalf = (kMaxNameLength - 3) / 2;
  const std::size_t before_end = first_characters(text, text_width(text) - kHalf).size();
  return fmt::format("{}...{}", first_characters(text, kHalf), text.substr(before_end));
}

/// `text` in lines that fit into `width` pixels, broken after a blank where there is one.
std::vector<std::string> wrapped(std::string_view text, int width) {
  const auto limit = static_cast<std::size_t>(std::max(20.0, width / kCharWidth));
  std::vector<std::string> lines;
  const std::string shown = one_line(text);
  for (std::string_view rest = shown; !rest.empty();) {
    std::string_view line = first_characters(rest, limit);
    if (const std::size_t blank = line.rfind(' ');
        line.size() < rest.size() && blank != std::string_view::npos) {
      line = line.substr(0, blank + 1);
    }
    lines.emplace_back(line);
    rest.remove_prefix(line.size());
  }
  if (lines.empty()) {
    lines.emplace_back();
  }
  return lines;
}

/// Of several lines; the breaks are ours.
std::string gnuplot_string(const std::vector<std::string>& lines) {
  return gnuplot_string(fmt::format("{}", fmt::join(lines, "\n")));
}

/// The series' look for gnuplot.
std::string style_text(const FigureSeries& series, const SeriesStyle& style, int point_type) {
  constexpr std::array kDashes = {1, 2, 4, 5};
  const auto variant = static_cast<std::size_t>(series.variant);
  const bool dotted = style.dotted && variant == 0;
  std::string text = fmt::format("linecolor rgb \"{}\"", style.colour);
  if (series.line) {
    text += fmt::format(" linewidth 2 dashtype {}", dotted ? 3 : kDashes[variant % kDashes.size()]);
  }
  if (series.points) {
    text += fmt::format(" pointtype {}", point_type);
  }
  return series.line ? text : text + " pointsize 1.2";
}

/// How much room a panel needs around its plot.
struct Frame {
  std::vector<std::string> title;
  int width = 0;  ///< pixels
  int top_lines = 0;
  int axis_lines = 0;  ///< below the axis: its numbers or names, and its label
  int key_columns = 1;
  int key_lines = 0;

  int bottom_lines() const { return axis_lines + key_lines + 1; }
  int lines() const { return top_lines + bottom_lines(); }
};

Frame frame_of(const FigurePanel& panel, int least_width) {
  constexpr int kPixelsPerName = 40;
  Frame frame;
  frame.width = std::max(least_width, 100 + kPixelsPerName * static_cast<int>(panel.x_names.size()));
  frame.title = wrapped(panel.title, frame.width - 60);
  frame.top_lines = static_cast<int>(frame.title.size()) + 1;
  std::size_t longest_name = 0;
  for (const std::string& name : panel.x_names) {
    longest_name = std::max(longest_name, text_width(short_name(name)));
  }
  // Names hang at an angle of 25 degrees.
  frame.axis_lines = 2 + static_cast<int>(wrapped(panel.x_label, frame.width - 60).size()) +
                     static_cast<int>(static_cast<double>(longest_name) * kCharWidth * 0.43 / kLineHeight);
  std::size_t entries = 0;
  std::size_t longest_label = 0;
  for (const FigureSeries& series : panel.series) {
    if (!series.label.empty() && drawable(panel, series)) {
      ++entries;
      longest_label = std::max(longest_label, text_width(short_name(series.label)));
    }
  }
  // No more columns than gnuplot would take of its own: what it moves to the next line needs room, too.
  const double entry_width = static_cast<double>(longest_label) * kCharWidth + 100;
  frame.key_columns = std::clamp(static_cast<int>((frame.width - 100) / entry_width), 1, 6);
  frame.key_lines = (static_cast<int>(entries) + frame.key_columns - 1) / frame.key_columns;
  return frame;
}

/// The y axis on a logarithmic scale: whole decades where the points span many; else as much as they need,
/// with numbers inside the decades, so that curves that lie close together fill the plot.
std::string log_y_axis(const FigurePanel& panel) {
  constexpr double kRoom = 1.25;  // a factor around the points
  constexpr double kMostDecades = 2;
  double low = INFINITY;
  double high = 0;
  bool tagged = false;  // tags stand where there is room, beyond the points, too
  for (const FigureSeries& series : panel.series) {
    tagged = tagged || !series.tags.empty();
    for (std::size_t i = 0; i < series.x.size(); ++i) {
      if (drawable(panel, series.x[i], series.y[i])) {
        low = std::min(low, series.y[i]);
        high = std::max(high, series.y[i]);
      }
    }
  }
  const double decades = std::log10(high) - std::log10(low);
  if (!(decades <= kMostDecades) || tagged || low < 1e-200 || high > 1e200) {
    return "set autoscale y\nset ytics autofreq\nset logscale y\n";
  }
  const std::vector<int> digits = decades < 1 ? std::vector{1, 2, 3, 5, 7} : std::vector{1, 2, 5};
  std::vector<std::string> ticks;
  for (int widened = 0; ticks.size() < 2 && widened < 8; ++widened) {
    low /= kRoom;
    high *= kRoom;
    ticks.clear();
    for (double decade = std::floor(std::log10(low)); decade <= std::log10(high); ++decade) {
      for (const int digit : digits) {
        if (const double value = digit * std::pow(10, decade); value >= low && value <= high) {
          ticks.push_back(fmt::format("{:.6g}", value));
        }
      }
    }
  }
  return fmt::format("set yrange [{:.6g}:{:.6g}]\nset ytics ({})\nset logscale y\n", low, high,
                     fmt::join(ticks, ", "));
}

void append_axes(std::string& out, const FigurePanel& panel, const Frame& frame) {
  out += fmt::format("set title {}\nset xlabel {}\nset ylabel {}\n", gnuplot_string(frame.title),
                     gnuplot_string(wrapped(panel.x_label, frame.width - 60)),
                     gnuplot_string(one_line(panel.y_label)));
  out += fmt::format("set tmargin {}\nset bmargin {}\n", frame.top_lines, frame.bottom_lines());
  out += "unset logscale\n";
  out += panel.log_y ? log_y_axis(panel) : "set yrange [0:*]\nset ytics autofreq\n";
  out += panel.log_x ? "set logscale x\n" : "";
  out += "set xtics autofreq norotate\nset autoscale x\n";
  if (!panel.x_names.empty()) {
    std::vector<std::string> ticks;
    for (std::size_t i = 0; i < panel.x_names.size(); ++i) {
      // A tick's text is a format of gnuplot's for its number.
      std::string format;
      for (const char c : short_name(panel.x_names[i])) {
        format += c == '%' ? std::string("%%") : std::string(1, c);
      }
      ticks.push_back(fmt::format("{} {}", gnuplot_string(format), i));
    }
    out += fmt::format("set xtics rotate by -25 ({})\nset xrange [-0.3:{}]\n", fmt::join(ticks, ", "),
                       static_cast<double>(panel.x_names.size()) - 0.7);
  }
}

void append_data(std::string& out, const FigurePanel& panel, const FigureSeries& series,
                 const std::string& block) {
  out += block + " << END_OF_DATA\n";
  for (std::size_t i = 0; i < series.x.size(); ++i) {
    if (drawable(panel, series.x[i], series.y[i])) {
      out += fmt::format("{} {} {}{}\n", series.x[i], series.y[i],
                         gnuplot_string(series.tags.empty() ? "" : short_name(series.tags[i])),
                         series.tag_x.empty() ? "" : fmt::format(" {} {}", series.tag_x[i], series.tag_y[i]));
    }
  }
  out += "END_OF_DATA\n";
}

void append_panel(std::string& out, const FigurePanel& panel, int panel_index, const Frame& frame,
                  const std::map<std::string, SeriesStyle>& styles,
                  const std::map<std::string, int>& markers) {
  append_axes(out, panel, frame);
  std::vector<std::string> plots;
  for (std::size_t s = 0; s < panel.series.size(); ++s) {
    const FigureSeries& series = panel.series[s];
    require_equal_lengths(series);
    if (!drawable(panel, series)) {
      continue;
    }
    const std::string block = fmt::format("$panel{}_series{}", panel_index, s);
    append_data(out, panel, series, block);
    const SeriesStyle& style = styles.at(look_of(series));
    plots.push_back(fmt::format("{} using 1:2 with {} {} {}", block,
                                !series.line    ? "points"
                                : series.points ? "linespoints"
                                                : "lines",
                                style_text(series, style, point_type_of(series, style, markers)),
                                series.label.empty()
                                    ? "notitle"
                                    : fmt::format("title {}", gnuplot_string(short_name(series.label)))));
    if (!series.tags.empty()) {
      plots.push_back(fmt::format("{} using {}:3 with labels left{} textcolor rgb \"{}\" notitle", block,
                                  series.tag_x.empty() ? "1:2" : "4:5",
                                  series.tag_x.empty() ? " offset character 1,0.5" : "", style.colour));
    }
  }
  if (!plots.empty()) {
    out += fmt::format("plot {}\n", fmt::join(plots, ", \\\n     "));
  }
}

}  // namespace

bool has_points(const FigurePanel& panel) {
  return std::ranges::any_of(panel.series, [&](const auto& series) { return drawable(panel, series); });
}

std::string image_name(const Figure& figure, const std::string& name) {
  const auto harmless = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
  };
  if (name.empty() || !std::ranges::all_of(name, harmless)) {
    throw InternalError(fmt::format("\"{}\" is no name for a figure's file", name));
  }
  return name + (figure.png ? ".png" : ".svg");
}

std::string figure_script(const Figure& figure, const std::string& name) {
  const auto panels = std::max<int>(1, static_cast<int>(figure.panels.size()));
  const int columns = figure.columns > 0 ? std::min(figure.columns, panels) : panels;
  std::vector<Frame> frames;
  std::vector<int> row_heights;
  int width = figure.panel_width;
  for (const FigurePanel& panel : figure.panels) {
    frames.push_back(frame_of(panel, figure.panel_width));
    width = std::max(width, frames.back().width);
    if (frames.size() % static_cast<std::size_t>(columns) == 1 || columns == 1) {
      row_heights.push_back(0);
    }
    row_heights.back() =
        std::max(row_heights.back(), figure.plot_height + kLineHeight * frames.back().lines());
  }
  const int total_width = width * columns;
  const std::vector<std::string> title = wrapped(figure.title, total_width - 60);
  int top = figure.title.empty() ? 0 : kLineHeight * (static_cast<int>(title.size()) + 1);
  const int total_height = std::max(1, std::accumulate(row_heights.begin(), row_heights.end(), top));
  std::string out = fmt::format(
      "set terminal {} size {},{} noenhanced font \"sans,12\" background \"white\"\nset output {}\n"
      "set encoding utf8\nset grid xtics ytics mytics\nset format \"%g\"\nset pointsize 0.7\nset multiplot\n",
      figure.png ? "pngcairo" : "svg", total_width, total_height, gnuplot_string(image_name(figure, name)));
  if (!figure.title.empty()) {
    out += fmt::format("set label 1 {} at screen 0.5,{} center\n", gnuplot_string(title),
                       1 - static_cast<double>(kLineHeight) / total_height);
  }
  const auto styles = styles_of(figure);
  const auto markers = markers_of(figure);
  for (std::size_t p = 0; p < figure.panels.size(); ++p) {
    const auto column = static_cast<int>(p) % columns;
    const int height = row_heights[p / static_cast<std::size_t>(columns)];
    const double bottom = 1 - static_cast<double>(top + height) / total_height;
    out += fmt::format("set origin {},{}\nset size {},{}\n", static_cast<double>(column) / columns, bottom,
                       1.0 / columns, static_cast<double>(height) / total_height);
    // At the panel's lower edge: gnuplot itself would put a legend of many lines over the axis' label.
    out +=
        fmt::format("set key at screen {},{} center bottom horizontal maxcols {}\n", (column + 0.5) / columns,
                    bottom + 0.5 * kLineHeight / total_height, frames[p].key_columns);
    append_panel(out, figure.panels[p], static_cast<int>(p), frames[p], styles, markers);
    out += "unset label 1\n";
    top += column + 1 == columns ? height : 0;
  }
  return out + "unset multiplot\n";
}

}  // namespace moescope
