#pragma once

#include "reference/backend/reference_backend.hpp"

namespace moescope::test {

/// The routing that a baseline's router makes of its inputs.
inline Routing routing_of(const SystemInputs& inputs) {
  ReferenceBackend backend;
  const auto execution = backend.prepare_system(inputs);
  execution->run(L2State::kWarm);
  return execution->routing();
}

}  // namespace moescope::test
