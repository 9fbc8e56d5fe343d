#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

/// Hardware counters of named ranges of GPU work, whatever they come from: CUPTI, a recording, or a fake.
namespace moescope {

/// A counter that this chip, driver or permission does not give.
struct UnavailableCounter {
  std::string name;
  std::string reason;
};

/// What measuring a set of counters takes, known before anything runs.
struct CounterPlan {
  std::string chip;                             ///< as the vendor's library names it, e.g. "GA100"
  int passes = 0;                               ///< times the whole work is replayed
  std::vector<std::string> counters;            ///< available, in the order asked for
  std::vector<UnavailableCounter> unavailable;  ///< asked for and not to be had
};

/// Work cut into ranges. The source replays all ranges, in order, once per pass.
struct RangedWork {
  std::vector<std::string> ranges;             ///< names, distinct (stage names)
  std::function<void()> before_pass;           ///< puts the caches in the same state; outside every range
  std::function<void(std::size_t range)> run;  ///< enqueues one range's work and waits for it
};

/// Counters of one range; names as planned. A counter that a pass failed to give is absent.
struct RangeCounters {
  std::string range;
  std::map<std::string, double> values;
};

class CounterSource {
 public:
  virtual ~CounterSource() = default;
  /// "cupti", "recorded" or "fake": who counted.
  virtual std::string name() const = 0;
  /// Resolves counters (the vendor's names) for the chip. Never throws for an unknown name: it is
  /// unavailable.
  virtual CounterPlan plan(std::span<const std::string> counters) = 0;
  /// Replays `work` plan.passes times. Throws CountersUnavailable (core/base/error.hpp) when counters are not
  /// permitted or another profiler holds them, InternalError when a range was dropped.
  virtual std::vector<RangeCounters> measure(const CounterPlan& plan, const RangedWork& work) = 0;
};

}  // namespace moescope
