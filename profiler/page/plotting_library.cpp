#include "profiler/page/plotting_library.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/utf8.hpp"
#include "core/files/regular_file.hpp"

namespace moescope {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHowToGet =
    "apt-get install libjs-chart.js, or name the file: --chart-js node_modules/chart.js/dist/chart.umd.js";

/// "3.9.1" of the banner that every file of Chart.js begins with; empty for anything else.
std::string version_of(const std::string& script) {
  constexpr std::string_view kTitle = "Chart.js v";
  const std::string_view head = std::string_view(script).substr(0, 400);
  const std::size_t found = head.find(kTitle);
  if (found == std::string_view::npos) {
    return {};
  }
  const std::string_view rest = head.substr(found + kTitle.size());
  std::size_t at = 0;
  const auto digits = [&] {
    const std::size_t from = at;
    while (at < rest.size() && rest[at] >= '0' && rest[at] <= '9') {
      ++at;
    }
    return at - from;
  };
  const auto dot = [&] { return at < rest.size() && rest[at++] == '.'; };
  const bool known = (rest.starts_with("3.") || rest.starts_with("4.")) && digits() == 1 && dot() &&
                     digits() > 0 && dot() && digits() > 0;
  return known ? std::string(rest.substr(0, at)) : "";
}

std::string lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  return text;
}

/// A module has to be imported from a file; the others set `Chart` for everyone.
bool is_module(const fs::path& file) {
  return file.extension() == ".mjs" || file.string().find(".esm.") != std::string::npos;
}

}  // namespace

std::vector<fs::path> plotting_library_files(const char* data_dirs) {
  constexpr std::array kNames = {"chart.umd.min.js", "chart.min.js", "chart.umd.js", "Chart.min.js",
                                 "chart.js"};
  const std::string_view dirs =
      data_dirs == nullptr || *data_dirs == '\0' ? "/usr/local/share:/usr/share" : data_dirs;
  std::vector<fs::path> files;
  for (std::size_t at = 0; at <= dirs.size();) {
    const std::size_t end = std::min(dirs.find(':', at), dirs.size());
    if (end > at) {
      const fs::path folder = fs::path(dirs.substr(at, end - at)) / "javascript" / "chart.js";
      for (const char* name : kNames) {
        files.push_back(folder / name);
      }
    }
    at = end + 1;
  }
  return files;
}

PlottingLibrary find_plotting_library(const std::vector<fs::path>& files) {
  for (const fs::path& file : files) {
    std::error_code unknown;
    if (fs::is_regular_file(file, unknown)) {
      try {
        return read_plotting_library(file);
      } catch (const FileError& error) {
        return {.script = {}, .version = {}, .reason = fmt::format("{}; {}", error.what(), kHowToGet)};
      }
    }
  }
  return {.script = {}, .version = {}, .reason = fmt::format("no Chart.js here; {}", kHowToGet)};
}

PlottingLibrary read_plotting_library(const fs::path& file) {
  PlottingLibrary library;
  library.script = read_text(file);
  library.version = version_of(library.script);
  if (library.version.empty() || is_module(file)) {
    throw FileError(file.string(), "", "is no Chart.js 3 or 4 as one script (chart.min.js, chart.umd.js)");
  }
  const std::string text = lower(library.script);
  if (text.find("</script") != std::string::npos || text.find("<!--") != std::string::npos ||
      valid_utf8(library.script) != library.script) {
    throw FileError(file.string(), "", "cannot stand inside a page: it has an end of script in it");
  }
  return library;
}

}  // namespace moescope
