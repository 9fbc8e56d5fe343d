// schedule: the order of work of the expert stage. The builders live in core, because a Schedule is data that
// every backend is checked against.
#include "core/schedule/schedule.hpp"

#include "core/base/error.hpp"
#include "reference/stages/stages.hpp"

namespace moescope::reference {

bool supports_schedule(ScheduleKind kind, std::string& why) {
  if (kind == ScheduleKind::kSparseLibrary) {
    why = "sparse_library is cuSPARSE and needs the cuda backend";
    return false;
  }
  return true;
}

Schedule build(const Routing& routing, const ScheduleOptions& options) {
  std::string why;
  if (!supports_schedule(options.kind, why)) {
    throw InvalidArgument("schedule", to_string(options.kind), why);
  }
  return build_schedule(routing, options);
}

}  // namespace moescope::reference
