// Apart from auto_schedule.cpp for whoever predicts without building schedules.
#include <algorithm>

#include "core/cost/auto_schedule.hpp"

namespace moescope {

double ScheduleWork::predicted_s(const ScheduleRates& rates) const {
  const double memory_s = memory_bytes / rates.memory_bytes_per_s;
  const double cache_s = requested_bytes / rates.cache_bytes_per_s;
  const double flop_s = flop / rates.flop_per_s;
  return rates.fixed_s +
         (rates.overlaps ? std::max({memory_s, cache_s, flop_s}) : memory_s + cache_s + flop_s);
}

}  // namespace moescope
