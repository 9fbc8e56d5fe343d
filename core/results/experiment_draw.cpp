#include "core/results/experiment_draw.hpp"

#include <set>

#include "core/workload/deterministic_math.hpp"

namespace moescope::detail {

std::vector<Combination> all_combinations(const std::vector<std::size_t>& sizes) {
  std::vector<Combination> all(1);
  for (const std::size_t size : sizes) {
    std::vector<Combination> longer;
    longer.reserve(all.size() * size);
    for (const Combination& start : all) {
      for (std::size_t i = 0; i < size; ++i) {
        longer.push_back(start);
        longer.back().push_back(i);
      }
    }
    all = std::move(longer);
  }
  return all;
}

std::vector<Combination> drawn_combinations(const std::vector<std::size_t>& sizes, const Draw& draw,
                                            const std::function<bool(const Combination&)>& possible) {
  constexpr std::uint64_t kDraws = 1000;
  constexpr std::uint64_t kDrawsPerPoint = 20;
  const Philox random(draw.seed, static_cast<std::uint32_t>(RandomStream::kExperimentPoints));
  const auto count = static_cast<std::uint64_t>(draw.count);
  std::set<Combination> seen;
  std::vector<Combination> drawn;
  std::uint64_t number = 0;
  double all = 1;
  for (const std::size_t size : sizes) {
    all *= static_cast<double>(size);
  }
  const std::uint64_t most = kDraws + kDrawsPerPoint * count;
  for (std::uint64_t tries = 0; tries < most && drawn.size() < count; ++tries) {
    if (static_cast<double>(seen.size()) >= all) {
      break;  // there are no others
    }
    Combination combination;
    for (const std::size_t size : sizes) {
      // uniform() is below 1 by 2^-53 at least, and a list has fewer values than 2^52.
      combination.push_back(static_cast<std::size_t>(random.uniform(number++) * static_cast<double>(size)));
    }
    if (seen.insert(combination).second && possible(combination)) {
      drawn.push_back(std::move(combination));
    }
  }
  return drawn;
}

}  // namespace moescope::detail
