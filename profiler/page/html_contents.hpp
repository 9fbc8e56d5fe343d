#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "profiler/page/page_figures.hpp"

namespace moescope {

/// A place of the page, and what it is called.
struct PageLink {
  std::string id;
  std::string text;
};

/// What stands under a heading, and the places inside that its contents name.
struct PageSection {
  std::string id;
  std::string heading;
  std::string html;
  std::vector<PageLink> links;
};

/// Links to the figures from number `first` (from 0 on) to the last: their captions without the words that
/// all of them have, for a list that can be looked through.
std::vector<PageLink> figure_links(const PageFigures& figures, std::size_t first);

/// Links to every section and what it holds; long lists are folded.
std::string contents_html(std::span<const PageSection> sections);

}  // namespace moescope
