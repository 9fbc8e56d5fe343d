#include "profiler/text/histogram.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "profiler/text/format.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

Table load_histogram(std::span<const std::int64_t> loads, std::int64_t width) {
  struct Class {
    std::int64_t experts = 0;
    std::int64_t pairs = 0;
  };
  std::vector<Class> classes(1);  // class c holds loads of bit width c: 0, 1, 2-3, 4-7, ...
  std::int64_t all_pairs = 0;
  for (const std::int64_t load : loads) {
    const auto c = static_cast<std::size_t>(std::bit_width(static_cast<std::uint64_t>(load)));
    classes.resize(std::max(classes.size(), c + 1));
    ++classes[c].experts;
    classes[c].pairs += load;
    all_pairs += load;
  }
  const std::int64_t most = std::ranges::max(classes, {}, &Class::experts).experts;
  Table table({{"pairs per expert"}, {"experts"}, {"of all pairs"}, {"", Align::kLeft, Need::kExtra}});
  for (std::size_t c = 0; c < classes.size(); ++c) {
    const std::int64_t low = c == 0 ? 0 : std::int64_t{1} << (c - 1);
    const std::int64_t high = c == 0 ? 0 : 2 * low - 1;
    const std::int64_t experts = classes[c].experts;
    // Any expert at all is worth one mark.
    const std::int64_t bar = experts == 0 ? 0 : std::max<std::int64_t>(1, experts * width / most);
    table.add_row(
        {low == high ? fmt::format("{}", low) : fmt::format("{}-{}", low, high), fmt::format("{}", experts),
         format_percent(
             all_pairs == 0 ? 0 : static_cast<double>(classes[c].pairs) / static_cast<double>(all_pairs)),
         std::string(static_cast<std::size_t>(bar), '#')});
  }
  return table;
}

}  // namespace moescope
