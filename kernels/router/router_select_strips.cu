// Stage router_select (paper eqs. 10-11) for the staircase schedule: per token the exact top K of
// S[i,j] = p_r[i] + p_c[j] as a threshold, the log-sum-exp of the selected scores, and the smallest cover by
// strips. No pair is ever listed.
//
// Columns are sorted in registers, the threshold is searched by counting
// (router_select_search.cuh), the cover follows from the rows' counts (router_select_cover.cuh). 32 warps per
// multiprocessor and 64 registers each hide one another's latencies. Grids too large for registers are sorted
// in memory by the same warp.
#include "kernels/router/router_select_strips.cuh"

namespace moescope::cuda {

void launch_router_select_strips(const LayerShape& shape, StripRule rule, const float* logits,
                                 DeviceStrips strips, std::int64_t* bad_logit, cudaStream_t stream) {
  launch_select_strips(shape, rule, logits, strips, bad_logit, NoMirror{}, stream);
}

}  // namespace moescope::cuda
