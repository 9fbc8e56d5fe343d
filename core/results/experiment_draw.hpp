#pragma once

#include <cstdint>
#include <functional>
#include <vector>

/// Which combinations of an experiment's lists are points. Not for use outside core/results/experiment*.cpp.
namespace moescope::detail {

/// What "draw" in an experiment file asks for.
struct Draw {
  std::int64_t count = 0;
  std::uint64_t seed = 0;
};

/// One value of every list: entry i is an index into list i.
using Combination = std::vector<std::size_t>;

/// Every combination of lists with `sizes` values each, the last list changing fastest.
std::vector<Combination> all_combinations(const std::vector<std::size_t>& sizes);

/// draw.count different combinations that `possible` takes, every index drawn evenly and for itself; a
/// combination that is refused or there already is drawn again. The same seed and sizes give the same ones on
/// every machine. Fewer where 1000 draws and 20 a
/// point do not find that many.
std::vector<Combination> drawn_combinations(const std::vector<std::size_t>& sizes, const Draw& draw,
                                            const std::function<bool(const Combination&)>& possible);

}  // namespace moescope::detail
