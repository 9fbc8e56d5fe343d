// What the library says of itself, and how much workspace an operation needs.
#include "capi/operation.hpp"

using namespace moescope::capi;

const char* moescope_version(void) { return MOESCOPE_LIBRARY_VERSION; }

int32_t moescope_abi_version(void) { return MOESCOPE_ABI_VERSION; }

int32_t moescope_supports(int32_t device) {
  return device == MOESCOPE_CPU || (device == MOESCOPE_CUDA && gpu::built()) ? 1 : 0;
}

moescope_status moescope_workspace_bytes(moescope_operation operation, const moescope_shape* shape,
                                         const moescope_execution* execution, size_t* bytes) {
  return guarded([&] {
    require_array("bytes", bytes, 1);
    const Problem problem = checked_problem(operation, shape, execution);
    if (execution->device == MOESCOPE_CUDA) {
      *bytes = gpu::workspace_bytes({operation, problem, shape->dtype, *execution});
      return;
    }
    by_dtype(shape->dtype, [&]<class S>() { *bytes = scratch_bytes<S>(operation, problem); });
  });
}
