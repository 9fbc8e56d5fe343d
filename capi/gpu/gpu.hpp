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

/// Gradients that are null are not wanted. Those of both tables of experts are made together: one alone is
/// unsupported.
void select_backward(const Call& call, const void* row_logits, const void* col_logits, const void* ids,
                     const void* gates_gradient, void* row_gradient, void* col_gradient);

struct ExpertsGradients {
  void* x = nullptr;
  void* w_in = nullptr;
  void* w_out = nullptr;
  void* gates = nullptr;
};
void experts_backward(const Call& call, const void* x, const void* w_in, const void* w_out, const void* ids,
                      const void* gates, const void* y_gradient, const ExpertsGradients& gradients);

struct MlpGradients {
  void* x = nullptr;
  void* gate = nullptr;
  void* up = nullptr;
  void* down = nullptr;
};
void mlp_backward(const Call& call, const void* x, const void* gate, const void* up, const void* down,
                  const void* y_gradient, const MlpGradients& gradients);
/// `ids` and `gates` null: not at hand, both; they are selected again, or strips are.
void layer_backward(const Call& call, const moescope_layer_inputs& inputs, const void* ids, const void* gates,
                    const void* y_gradient, const moescope_layer_gradients& gradients);

}  // namespace moescope::capi::gpu
