#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "profiler/text/figure.hpp"

namespace moescope {

/// Figures of a page, numbered from 1 on: a place for each, and their data for page.js to draw. Colours and
/// markers are those of images (figure_style.hpp). Texts reach the page as data alone: JSON without any '<'.
class PageFigures {
 public:
  /// HTML of the figure's place, `figure-N`, with its caption, and for readers without scripts the plain
  /// figure (static_figure()); its own title is not shown.
  std::string add(const std::string& caption, Figure figure);

  std::size_t count() const { return figures_.size(); }
  const std::vector<std::string>& captions() const { return captions_; }

  /// {"texts": [...], "figures": [{"panels": [{"series": [...]}]}]}: names and texts of facts are places in
  /// `texts`, which most points share. Points that the axes cannot show are left out.
  std::string json() const;

 private:
  std::vector<std::string> captions_;
  std::vector<Figure> figures_;
};

}  // namespace moescope
