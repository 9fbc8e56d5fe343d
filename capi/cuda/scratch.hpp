#pragma once

#include <cstdint>

#include "capi/base/arena.hpp"
#include "capi/gpu/gpu.hpp"
#include "core/base/gpu_traits.hpp"
#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/backward.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/contract/strips_backward.hpp"

/// All that an operation takes of its workspace on the device: the one description of it.
namespace moescope::capi::gpu {

struct SelectionScratch {
  float* logits = nullptr;  ///< [L, Nr+Nc]
  std::int64_t* bad_logit = nullptr;
  std::int32_t* selected = nullptr;  ///< [L,K] by rising id
  float* selected_gates = nullptr;   ///< [L,K] of router_select; the interface's are made anew, in its order
  std::byte* workspace = nullptr;
  std::uint64_t* sort_space = nullptr;
};

/// Of experts token by token.
struct PairsScratch {
  std::int32_t* ids = nullptr;  ///< [L,K] of a layer whose caller has no room for them
  float* gates = nullptr;       ///< [L,K]
  std::byte* workspace = nullptr;
  unsigned* arrivals = nullptr;  ///< the part of it that has to be zero
  std::int64_t arrivals_count = 0;
};

struct StripsScratch {
  cuda::DeviceStrips strips;
  std::int64_t zeroed_bytes = 0;  ///< of strips.scratch
  float* bound = nullptr;
  cuda::StaircaseOutput sums;
};

struct MlpScratch {
  float* y = nullptr;  ///< [L,d]; null where the caller's own will do
  std::byte* units = nullptr;
  std::byte* blas = nullptr;
  std::int64_t blas_bytes = 0;
};

/// Of the backward over a list of pairs.
struct PairsBackwardScratch {
  std::int32_t* ids = nullptr;          ///< [L,K]
  float* gates = nullptr;               ///< [L,K]
  cuda::DevicePairGradients gradients;  ///< gates: where the caller wants none
  cuda::DevicePairsByExpert sorted;
  std::byte* sort_space = nullptr;
  std::byte* workspace = nullptr;
  unsigned* arrivals = nullptr;  ///< the part of it that has to be zero
  std::int64_t arrivals_count = 0;
  float* side_sums = nullptr;  ///< of launch_select_backward()
};

/// Of the backward on strips, beside StripsScratch (whose sums are of dX there).
struct StripsBackwardScratch {
  cuda::StripsOrder order;
  cuda::StripsPairs pairs;
  float* logits_gradient = nullptr;  ///< [L, Nr+Nc]
  std::byte* workspace = nullptr;
  std::int32_t* exceeded =
      nullptr;  ///< of a batch with more than the caller said; null: there is room for all
};

struct MlpBackwardScratch {
  std::byte* gate_up = nullptr;           ///< [2h,d]: gate rows, then up rows
  std::byte* gate_up_gradient = nullptr;  ///< [2h,d]
  std::byte* down_gradient = nullptr;     ///< [d,h]
  std::byte* units = nullptr;
  std::byte* blas = nullptr;
  std::int64_t blas_bytes = 0;
};

struct Scratch {
  SelectionScratch selection;
  PairsScratch pairs;
  StripsScratch strips;
  MlpScratch mlp;
  float* dx = nullptr;  ///< [L,d] of a backward
  PairsBackwardScratch pairs_backward;
  StripsBackwardScratch strips_backward;
  MlpBackwardScratch mlp_backward;
};

/// The shape as the kernels' launchers take it. Throws Failure (unsupported) for what no kernel takes.
LayerShape device_shape(const Call& call);

/// How the experts of a layer run. Sums of staircase are in fixed point where they have to repeat, or where
/// fp16 would round too often.
ScheduleOptions layer_schedule(const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                               bool lists_pairs);

/// Fills `scratch` from `arena`; an arena without a base only adds up.
void take_scratch(Arena& arena, const Call& call, const LayerShape& shape, const GpuTraits& gpu,
                  Scratch& scratch);

}  // namespace moescope::capi::gpu
