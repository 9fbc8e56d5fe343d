#pragma once

#include "capi/base/arena.hpp"
#include "capi/cpu/experts.hpp"
#include "capi/cpu/mlp.hpp"
#include "capi/cpu/problem.hpp"
#include "capi/cpu/select.hpp"
#include "moescope.h"

namespace moescope::capi {

/// All that an operation takes of its workspace, in the order in which it lies there: the one description of
/// it.
template <class S>
struct Scratch {
  using T = Compute<S>;
  SelectWorkspace<T> select;
  ExpertsScratch<T> experts;
  T* gates_gradient = nullptr;  ///< [M] of the layer's backward
  T* p = nullptr;               ///< [M] of a backward
  T* q = nullptr;               ///< [M]
  PairsByExpert sorted;
  MlpScratch<S, T> mlp;
};

/// Fills `scratch` from `arena`; an arena without a base only adds up.
template <class S>
void take_scratch(Arena& arena, moescope_operation operation, const Problem& problem, Scratch<S>& scratch) {
  using T = Compute<S>;
  const bool layer = operation == MOESCOPE_LAYER_FORWARD || operation == MOESCOPE_LAYER_BACKWARD;
  const bool select = operation == MOESCOPE_SELECT_FORWARD || operation == MOESCOPE_SELECT_BACKWARD;
  const bool experts = operation == MOESCOPE_EXPERTS_FORWARD || operation == MOESCOPE_EXPERTS_BACKWARD;
  const bool mlp = operation == MOESCOPE_MLP_FORWARD || operation == MOESCOPE_MLP_BACKWARD;
  const bool backward = operation == MOESCOPE_EXPERTS_BACKWARD || operation == MOESCOPE_MLP_BACKWARD ||
                        operation == MOESCOPE_LAYER_BACKWARD;
  if (select || layer) {
    take_select_workspace(arena, problem, scratch.select);
  }
  if (experts || layer) {
    take_experts_scratch(arena, problem, backward, scratch.experts);
    if (backward) {
      scratch.gates_gradient = layer ? arena.take<T>(problem.pairs()) : nullptr;
      scratch.p = arena.take<T>(problem.pairs());
      scratch.q = arena.take<T>(problem.pairs());
      scratch.sorted = take_pairs_by_expert(arena, problem);
    }
  }
  if (mlp || (layer && problem.shared > 0)) {
    scratch.mlp = take_mlp_scratch<S, T>(arena, problem, backward);
  }
}

template <class S>
std::size_t scratch_bytes(moescope_operation operation, const Problem& problem) {
  Arena arena;
  Scratch<S> scratch;
  take_scratch(arena, operation, problem, scratch);
  return arena.used();
}

}  // namespace moescope::capi
