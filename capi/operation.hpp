#pragma once

#include <cstdint>

#include "capi/base/failure.hpp"
#include "capi/checks.hpp"
#include "capi/cpu/scratch.hpp"
#include "capi/gpu/gpu.hpp"
#include "core/layer/dtype.hpp"

namespace moescope::capi {

/// Calls body.template operator()<S>() with the storage type of a checked dtype.
template <class Body>
void by_dtype(std::int32_t dtype, const Body& body) {
  if (dtype == MOESCOPE_F64) {
    body.template operator()<double>();
  } else if (dtype == MOESCOPE_F32) {
    body.template operator()<float>();
  } else {
    body.template operator()<Bf16>();
  }
}

/// The frame of every operation: checks, then arrays(problem), which throws for null ones, then the
/// workspace, then body.template operator()<S>(problem, scratch); on CUDA on_cuda(call), which sees to its
/// workspace.
template <class Arrays, class Body, class OnCuda>
moescope_status run_operation(moescope_operation operation, const moescope_shape* shape,
                              const moescope_execution* execution, const Arrays& arrays, const Body& body,
                              const OnCuda& on_cuda) {
  return guarded([&] {
    const Problem problem = checked_problem(operation, shape, execution);
    arrays(problem);
    if (execution->device == MOESCOPE_CUDA) {
      on_cuda(gpu::Call{operation, problem, shape->dtype, *execution});
      return;
    }
    by_dtype(shape->dtype, [&]<class S>() {
      require_workspace(*execution, scratch_bytes<S>(operation, problem));
      Arena arena(execution->workspace, execution->workspace_bytes);
      Scratch<S> scratch;
      take_scratch(arena, operation, problem, scratch);
      body.template operator()<S>(problem, scratch);
    });
  });
}

template <class T>
const T* in(const void* array) {
  return static_cast<const T*>(array);
}
template <class T>
T* out(void* array) {
  return static_cast<T*>(array);
}

}  // namespace moescope::capi
