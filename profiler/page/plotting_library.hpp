#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace moescope {

/// The library that draws a page's figures: Chart.js, version 3 or 4, as one file that a page can embed.
/// Debian has it as libjs-chart.js, npm as chart.js. It is no part of this program.
struct PlottingLibrary {
  std::string script;   ///< its text; empty when there is none
  std::string version;  ///< "3.9.1"
  std::string reason;   ///< why there is none, and how to get it
};

/// Where it is looked for: javascript/chart.js/ below each of `data_dirs`, a list by colons as XDG_DATA_DIRS
/// has it; null or empty: /usr/local/share:/usr/share.
std::vector<std::filesystem::path> plotting_library_files(const char* data_dirs);

/// The first of `files` that is there. Without one, the result says what was looked for.
PlottingLibrary find_plotting_library(const std::vector<std::filesystem::path>& files);

/// `file` itself. Throws FileError when it cannot be read, is no Chart.js of these versions, or cannot stand
/// inside a page.
PlottingLibrary read_plotting_library(const std::filesystem::path& file);

}  // namespace moescope
