#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "capi/base/failure.hpp"
#include "capi/cpu/problem.hpp"
#include "moescope.h"

/// What every function of the interface holds its arguments against before it touches an array.
namespace moescope::capi {

/// Sizes of the structs of ABI version 1: what every caller gives at least. A field that is appended later is
/// read only where its struct_bytes reaches it.
inline constexpr std::size_t kShapeBytes = 80;
inline constexpr std::size_t kExecutionBytes = 64;
inline constexpr std::size_t kTensorsBytes = 72;  ///< of the layer's inputs, and of its gradients
inline constexpr std::size_t kBoundBytes = 80;    ///< of inputs that have expert_bound
inline constexpr std::size_t kCountsBytes = 88;   ///< of inputs that have strip_counts
inline constexpr std::size_t kStripsBytes = 80;   ///< of an execution that has strip_entries and strip_tiles
static_assert(sizeof(moescope_shape) == kShapeBytes && sizeof(moescope_execution) == kStripsBytes &&
              sizeof(moescope_layer_inputs) == kCountsBytes &&
              sizeof(moescope_layer_gradients) == kTensorsBytes);

/// Throws Failure: null or too small structs, extents and options that cannot be, a device without code.
Problem checked_problem(moescope_operation operation, const moescope_shape* shape,
                        const moescope_execution* execution);

/// Throws Failure (null) naming it, unless `count` elements are none.
void require_array(const char* name, const void* array, std::int64_t count);
/// A struct of the interface as its caller knows it: not null, and of this size at least.
template <class Struct>
const Struct& require_struct(const char* name, const Struct* value, std::size_t least) {
  if (value == nullptr) {
    throw Failure(MOESCOPE_ERROR_NULL, std::string(name) + ": null");
  }
  if (value->struct_bytes < least) {
    refuse(std::string(name) + ".struct_bytes", std::to_string(value->struct_bytes),
           "must be at least " + std::to_string(least));
  }
  return *value;
}
/// Throws Failure (workspace, null or value) unless the workspace holds `needed` bytes and is aligned.
void require_workspace(const moescope_execution& execution, std::size_t needed);

}  // namespace moescope::capi
