#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/contract/launch.hpp"
#include "kernels/router/router_select_token.cuh"

/// What both ways of writing a token's selection as a CSR share: router_select.cu by lists of columns,
/// router_select_rows.cuh row by row.
namespace moescope::cuda {

struct SelectCsrArguments {
  SelectArguments select;
  CsrMemory memory;
  DeviceRouting routing;
  unsigned long long* bad_logit;
};

/// Pointers into TokenMemory::rest; CsrMemory says which of them a form has.
template <class Count>
struct EmitMemory {
  float* col_log_probs;
  float* row_log_probs;
  Count* candidates;
  Count* table;
  unsigned* starts;
  std::int32_t* ids;
  float* scores;

  __device__ EmitMemory(std::byte* begin, const CsrMemory& at)
      : col_log_probs(reinterpret_cast<float*>(begin + at.col_log_probs)),
        row_log_probs(reinterpret_cast<float*>(begin + at.row_log_probs)),
        candidates(reinterpret_cast<Count*>(begin + at.candidates)),
        table(reinterpret_cast<Count*>(begin + at.table)),
        starts(reinterpret_cast<unsigned*>(begin + at.starts)),
        ids(reinterpret_cast<std::int32_t*>(begin + at.ids)),
        scores(reinterpret_cast<float*>(begin + at.scores)) {}
};

/// Columns whose log-probability `takes` holds for, by id, to `list`; returns their number. By one warp.
template <class Count, class Takes>
__device__ int list_columns_that(const float* col_log_probs, int cols, Count* list, Takes takes) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int count = 0;
#pragma unroll 1
  for (int first = 0; first < cols; first += kWarp) {
    const int j = first + lane;
    const bool listed = j < cols && takes(col_log_probs[j]);
    const unsigned mask = __ballot_sync(kAllLanes, listed);
    if (listed) {
      list[count + __popc(mask & ((1U << lane) - 1))] = static_cast<Count>(j);
    }
    count += __popc(mask);
  }
  __syncwarp();
  return count;
}

/// By all threads of the block, when a token has NaN or infinite logits: reports the first of them. Later
/// kernels of the layer still run before the host sees that, so the token gets a valid routing.
template <int kThreads>
__device__ void reject_token(const SelectCsrArguments& args, std::int64_t token) {
  const std::int64_t width = std::int64_t{args.select.rows} + args.select.cols;
  const std::int64_t flat = token * width;
  find_bad(args.select.logits + flat, static_cast<int>(width),
           [&](int i) { atomicMin(args.bad_logit, static_cast<unsigned long long>(flat + i)); });
  for (int k = static_cast<int>(threadIdx.x); k < args.select.top_k; k += kThreads) {
    args.routing.expert_ids[token * args.select.top_k + k] = k;
    args.routing.gates[token * args.select.top_k + k] = 0;
  }
}

}  // namespace moescope::cuda
