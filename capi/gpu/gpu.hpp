#pragma once

#include <cstddef>
#include <cstdint>

#include "capi/cpu/problem.hpp"
#include "moescope.h"

/// The operations on CUDA, whose code is in capi/cuda/, or in a build without it (absent.cpp) none. Arrays
/// are device memory and were checked not to be null; everything is enqueued on the execution's stream.
namespace moescope::capi::gpu {

/// An operation that was asked for, with its shape checked.
struct Call {
  moescope_operation operation = 0;
  const Problem& problem;
  std::int32_t dtype = 0;
  const moescope_execution& execution;
};

/// Whether this library was built with it.
bool built();

/// Throws Failure: shapes and types that no kernel takes, no device, too little workspace where `run`.
std::size_t workspace_bytes(const Call& call);

/// moescope_select_forward(); `scores` may be null.
void select_forward(const Call& call, const void* row_logits, const void* col_logits, void* ids, void* gates,
                    void* scores);
void experts_forward(const Call& call, const void* x, const void* w_in, const void* w_out, const void* ids,
                     const void* gates, void* y);
void mlp_forward(const Call& call, const void* x, const void* gate, const void* up, const void* down,
                 void* y);
/// `ids` and `gates` null: not wanted, both.
void layer_forward(const Call& call, const moescope_layer_inputs& inputs, void* y, void* ids, void* gates);

}  // namespace moescope::capi::gpu
