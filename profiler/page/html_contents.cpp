#include "profiler/page/html_contents.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "profiler/text/html_text.hpp"

namespace moescope {
namespace {

std::vector<std::string> short_titles(const std::vector<std::string>& captions) {
  const auto words_of = [](const std::string& title) {
    std::vector<std::string> words;
    for (std::size_t at = 0; at <= title.size();) {
      const std::size_t end = std::min(title.find(", ", at), title.size());
      words.push_back(title.substr(at, end - at));
      at = end + 2;
    }
    return words;
  };
  std::map<std::string, std::size_t> count;
  for (const std::string& caption : captions) {
    const auto words = words_of(caption);
    for (const std::string& word : std::set<std::string>(words.begin(), words.end())) {
      ++count[word];
    }
  }
  std::vector<std::string> titles;
  for (const std::string& caption : captions) {
    std::vector<std::string> words = words_of(caption);
    const auto in_all = [&](const std::string& word) { return count[word] == captions.size(); };
    if (!std::ranges::all_of(words, in_all)) {
      std::erase_if(words, in_all);
    }
    titles.push_back(fmt::format("{}", fmt::join(words, ", ")));
  }
  return titles;
}

}  // namespace

std::vector<PageLink> figure_links(const PageFigures& figures, std::size_t first) {
  const std::vector<std::string> captions(figures.captions().begin() + static_cast<std::ptrdiff_t>(first),
                                          figures.captions().end());
  const auto titles = short_titles(captions);
  std::vector<PageLink> links;
  for (std::size_t i = 0; i < titles.size(); ++i) {
    links.push_back({fmt::format("figure-{}", first + i + 1), titles[i]});
  }
  return links;
}

std::string contents_html(std::span<const PageSection> sections) {
  std::string html = "<nav aria-label=Contents><h2>Contents</h2><ul>\n";
  for (const PageSection& section : sections) {
    html += fmt::format("<li><a href=\"#{}\">{}</a>", section.id, html_text(section.heading));
    if (!section.links.empty()) {
      html += fmt::format("<details><summary>all {}</summary><ul>\n", section.links.size());
      for (const PageLink& link : section.links) {
        html += fmt::format("<li><a href=\"#{}\">{}</a></li>\n", link.id, html_text(link.text));
      }
      html += "</ul></details>";
    }
    html += "</li>\n";
  }
  return html + "</ul></nav>\n";
}

}  // namespace moescope
