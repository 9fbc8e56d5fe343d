#pragma once

#include <functional>
#include <string>
#include <vector>

/// Work whose bytes and FLOP follow from its construction, to hold counters against.
namespace moescope {

/// What a metric of one piece of work has to show.
struct KnownValue {
  std::string metric;    ///< a name of the metric catalogue (profiler/counters/metric_catalogue.hpp)
  double value = 0;      ///< what the work must do
  double tolerance = 0;  ///< |measured / value - 1| may be this large
  /// The value is a bound that no more than should be seen, e.g. HBM bytes of a read that L2 serves.
  bool at_most = false;
};

struct KnownCase {
  std::string name;  ///< one word, distinct
  std::string what;  ///< one line
  std::vector<KnownValue> expected;
  std::function<void()> run;  ///< starts the work and waits for it
};

/// The cases share buffers and stay valid as long as one of them, or `before`, lives.
struct KnownWork {
  std::vector<KnownCase> cases;
  std::function<void()> before;  ///< before all cases: leaves no dirty line in the cache; waits
};

}  // namespace moescope
