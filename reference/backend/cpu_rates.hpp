#pragma once

#include "core/cost/auto_schedule.hpp"

namespace moescope::reference {

/// What the cost model of choose_schedule() knows of this backend: rates of one measured thread times
/// `threads`.
MachineRates cpu_rates(int threads);

}  // namespace moescope::reference
