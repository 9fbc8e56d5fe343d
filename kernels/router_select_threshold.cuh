#pragma once

#include <cfloat>
#include <cstdint>

#include "kernels/block_ops.cuh"

/// The search for a token's K-th largest score, as router_select.cu describes it.
namespace moescope::cuda {

struct SelectArguments {
  std::int64_t num_tokens;
  int rows;
  int cols;
  int sort_length;  ///< columns padded to a power of two
  int top_k;
  bool softmax;  ///< gates: softmax over the selected, else exp(S)
  const float* logits;
  std::int32_t* expert_ids;
  float* gates;
  unsigned long long* bad_logit;
  float* scratch;  ///< global scratch, or null: shared
  std::int64_t scratch_floats;
};

/// Order-preserving map of floats to integers: a < b as floats implies key(a) < key(b).
__device__ __forceinline__ unsigned to_key(float value) {
  const unsigned bits = __float_as_uint(value);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float from_key(unsigned key) {
  return __uint_as_float((key & 0x80000000U) != 0 ? key & 0x7fffffffU : ~key);
}

/// Bitonic sort, descending; length is a power of two.
template <int kThreads>
__device__ void sort_descending(float* data, int length) {
  for (int size = 2; size <= length; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = static_cast<int>(threadIdx.x); pair < length / 2; pair += kThreads) {
        const int i = 2 * pair - (pair & (stride - 1));
        const float a = data[i];
        const float b = data[i + stride];
        if ((a < b) == ((i & size) == 0)) {
          data[i] = b;
          data[i + stride] = a;
        }
      }
      Block<kThreads>::sync();
    }
  }
}

/// Which scores are selected: all S >= sure, and of those in [tie, sure) the lowest ids until there are K.
struct Threshold {
  float sure;
  float tie;  ///< == sure when there are no ties to resolve
};

/// Finds the threshold. On return sure_count[i] is the number of columns of row i with S >= sure and
/// offsets[i] the number selected (ties resolved). The three count arrays have `rows` entries each; a thread
/// touches only its own rows until the scans.
template <int kThreads>
__device__ Threshold find_threshold(const SelectArguments& args, const float* row_p, const float* sorted_cols,
                                    float row_max, int*& sure_count, int*& offsets, int*& spare) {
  using B = Block<kThreads>;
  const auto count = [&](float t, const int* at_least, const int* at_most, int* out) {
    unsigned total = 0;
    for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
      int low = at_least[i];
      int high = at_most[i];
      while (low < high) {
        const int middle = (low + high) / 2;
        if (row_p[i] + sorted_cols[middle] >= t) {
          low = middle + 1;
        } else {
          high = middle;
        }
      }
      out[i] = low;
      total += static_cast<unsigned>(low);
    }
    return B::sum(total);
  };

  const auto top_k = static_cast<unsigned>(args.top_k);
  int* above = sure_count;  // counts at `high`: fewer than K in total
  int* reach = offsets;     // counts at `low`: at least K
  int* probe = spare;
  float row_min = FLT_MAX;
  for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
    above[i] = 0;
    reach[i] = args.cols;
    row_min = fminf(row_min, row_p[i]);
  }
  row_min = B::reduce(row_min, [](float a, float b) { return fminf(a, b); });

  // The best row alone has K scores down to its K-th column, so the K-th best of all is no lower.
  unsigned low = to_key(args.top_k <= args.cols ? row_max + sorted_cols[args.top_k - 1]
                                                : row_min + sorted_cols[args.cols - 1]);
  unsigned high = to_key(row_max + sorted_cols[0]) + 1;
  unsigned middle = low;
  for (;;) {
    const unsigned total = count(from_key(middle), above, reach, probe);
    if (total == top_k) {
      sure_count = probe;
      offsets = reach;
      spare = above;
      for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
        offsets[i] = probe[i];
      }
      B::sync();
      return {from_key(middle), from_key(middle)};
    }
    if (total > top_k) {
      low = middle;
      int* const old = reach;
      reach = probe;
      probe = old;
    } else {
      high = middle;
      int* const old = above;
      above = probe;
      probe = old;
    }
    if (high - low <= 1) {
      break;
    }
    middle = low + (high - low) / 2;
  }

  // `low` is the K-th score; more scores reach it than are needed, fewer exceed it.
  unsigned sure_total = 0;
  for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
    probe[i] = reach[i] - above[i];
    sure_total += static_cast<unsigned>(above[i]);
  }
  const int needed = args.top_k - static_cast<int>(B::sum(sure_total));
  B::sync();
  B::template scan_array<true>(probe, args.rows);
  for (int i = static_cast<int>(threadIdx.x); i < args.rows; i += kThreads) {
    reach[i] = above[i] + min(max(needed - probe[i], 0), reach[i] - above[i]);
  }
  B::sync();
  sure_count = above;
  offsets = reach;
  spare = probe;
  return {from_key(high), from_key(low)};
}

}  // namespace moescope::cuda
