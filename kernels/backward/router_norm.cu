// What stands between the router's product and the selection while training: log-softmax of rows and columns,
// batch norm over the batch's tokens and its backward, column sums. Sums over tokens go by parts of the batch
// in fp64, which one thread a column adds up in order.
#include <algorithm>

#include "kernels/contract/backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumnThreads = 64;
/// Parts of the batch that are summed apart: enough blocks to fill a GPU.
constexpr std::int64_t kMaxParts = 64;
constexpr std::int64_t kMinPartTokens = 16;

struct Parts {
  std::int64_t count;
  std::int64_t tokens;  ///< of a part; the last may have fewer
};

Parts parts_of(std::int64_t num_tokens) {
  const std::int64_t wanted =
      std::clamp<std::int64_t>((num_tokens + kMinPartTokens - 1) / kMinPartTokens, 1, kMaxParts);
  const std::int64_t tokens = (num_tokens + wanted - 1) / wanted;
  return {(num_tokens + tokens - 1) / tokens, tokens};
}

struct Sides {
  std::int64_t rows;
  std::int64_t cols;
  __host__ __device__ std::int64_t both() const { return rows + cols; }
};

Sides sides_of(const LayerShape& shape) { return {shape.grid_rows, shape.grid_cols}; }

/// One block per token and side, in place.
__global__ void __launch_bounds__(kThreads)
    log_softmax_kernel(std::int64_t num_tokens, Sides sides, float* logits, float* lse) {
  using Threads = Block<kThreads>;
  const std::int64_t token = blockIdx.x;
  const bool is_row = blockIdx.y == 0;
  float* const values = logits + token * sides.both() + (is_row ? 0 : sides.rows);
  const auto count = static_cast<int>(is_row ? sides.rows : sides.cols);
  const int thread = static_cast<int>(threadIdx.x);
  float most = -INFINITY;
  for (int i = thread; i < count; i += kThreads) {
    most = fmaxf(most, values[i]);
  }
  most = Threads::reduce(most, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0;
  for (int i = thread; i < count; i += kThreads) {
    sum += expf(values[i] - most);
  }
  const float shift = logf(Threads::sum(sum));
  for (int i = thread; i < count; i += kThreads) {
    values[i] = (values[i] - most) - shift;
  }
  if (lse != nullptr && thread == 0) {
    lse[(is_row ? 0 : num_tokens) + token] = most + shift;
  }
}

/// partial[part][column] = sum over the part's tokens of f(token, column).
template <class F>
__global__ void __launch_bounds__(kColumnThreads)
    partial_sums_kernel(std::int64_t num_tokens, std::int64_t part_tokens, std::int64_t columns, F f,
                        double* partial) {
  const std::int64_t column = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (column >= columns) {
    return;
  }
  const std::int64_t first = std::int64_t{blockIdx.y} * part_tokens;
  const std::int64_t last = min(first + part_tokens, num_tokens);
  double sum = 0;
  for (std::int64_t token = first; token < last; ++token) {
    sum += f(token, column);
  }
  partial[blockIdx.y * columns + column] = sum;
}

/// totals[column] = scale * sum over parts; added to what is there where `adds`.
template <class Out>
__global__ void __launch_bounds__(kColumnThreads)
    total_sums_kernel(std::int64_t parts, std::int64_t columns, const double* partial, double scale,
                      Out* totals, bool adds) {
  const std::int64_t column = std::int64_t{blockIdx.x} * kColumnThreads + threadIdx.x;
  if (column >= columns) {
    return;
  }
  double sum = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    sum += partial[part * columns + column];
  }
  totals[column] = static_cast<Out>(scale * sum + (adds ? static_cast<double>(totals[column]) : 0.0));
}

/// totals [Nr+Nc] = scale * sums over the batch of f(token, column).
template <class F, class Out>
void sum_columns(const LayerShape& shape, const F& f, double scale, double* partial, Out* totals,
                 cudaStream_t stream, bool adds = false) {
  const std::int64_t columns = shape.grid_rows + shape.grid_cols;
  const Parts parts = parts_of(shape.num_tokens);
  const auto blocks = static_cast<unsigned>((columns + kColumnThreads - 1) / kColumnThreads);
  partial_sums_kernel<<<dim3(blocks, static_cast<unsigned>(parts.count)), kColumnThreads, 0, stream>>>(
      shape.num_tokens, parts.tokens, columns, f, partial);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  total_sums_kernel<<<blocks, kColumnThreads, 0, stream>>>(parts.count, columns, partial, scale, totals,
                                                           adds);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

struct ValueOf {
  const float* values;
  std::int64_t columns;
  __device__ double operator()(std::int64_t t, std::int64_t c) const { return values[t * columns + c]; }
};

struct SquareOff {
  const float* values;
  const double* mean;
  std::int64_t columns;
  __device__ double operator()(std::int64_t t, std::int64_t c) const {
    const double off = values[t * columns + c] - mean[c];
    return off * off;
  }
};

/// Normalised logits from what the softmax left of them.
struct Normalised {
  DeviceLogProbs log_probs;
  const float* lse;
  std::int64_t num_tokens;
  std::int64_t rows;

  __device__ double operator()(std::int64_t t, std::int64_t c) const {
    return c < rows
               ? static_cast<double>(log_probs.row[t * log_probs.row_lead + c]) + lse[t]
               : static_cast<double>(log_probs.col[t * log_probs.col_lead + c - rows]) + lse[num_tokens + t];
  }
};

struct GradientTimesNormalised {
  const float* gradient;
  std::int64_t columns;
  Normalised normalised;
  __device__ double operator()(std::int64_t t, std::int64_t c) const {
    return gradient[t * columns + c] * normalised(t, c);
  }
};

__global__ void __launch_bounds__(kThreads)
    normalise_kernel(std::int64_t elements, std::int64_t columns, float* logits, DeviceNorm norm) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < elements) {
    const std::int64_t c = at % columns;
    logits[at] = static_cast<float>((logits[at] - norm.mean[c]) / sqrt(norm.variance[c] + norm.eps));
  }
}

__global__ void __launch_bounds__(kThreads)
    norm_backward_kernel(std::int64_t elements, std::int64_t columns, Normalised normalised, DeviceNorm norm,
                         const float* gradient, const double* mean, const double* mean_normalised,
                         float* before) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at < elements) {
    const std::int64_t t = at / columns;
    const std::int64_t c = at % columns;
    before[at] = static_cast<float>((gradient[at] - mean[c] - normalised(t, c) * mean_normalised[c]) /
                                    sqrt(norm.variance[c] + norm.eps));
  }
}

unsigned blocks_of(std::int64_t elements) {
  return static_cast<unsigned>((elements + kThreads - 1) / kThreads);
}

}  // namespace

void launch_log_softmax(const LayerShape& shape, float* logits, float* lse, cudaStream_t stream) {
  log_softmax_kernel<<<dim3(static_cast<unsigned>(shape.num_tokens), 2), kThreads, 0, stream>>>(
      shape.num_tokens, sides_of(shape), logits, lse);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

std::int64_t column_sums_workspace_bytes(const LayerShape& shape) {
  // Sums of the parts, and two means for the backward.
  return (parts_of(shape.num_tokens).count + 2) * (shape.grid_rows + shape.grid_cols) *
         static_cast<std::int64_t>(sizeof(double));
}

void launch_column_sums(const LayerShape& shape, const float* values, float* sums, void* workspace,
                        cudaStream_t stream, bool adds) {
  sum_columns(shape, ValueOf{values, shape.grid_rows + shape.grid_cols}, 1.0, static_cast<double*>(workspace),
              sums, stream, adds);
}

void launch_router_norm(const LayerShape& shape, float* logits, DeviceNorm norm, void* workspace,
                        cudaStream_t stream) {
  const std::int64_t columns = shape.grid_rows + shape.grid_cols;
  auto* const partial = static_cast<double*>(workspace);
  const double scale = 1.0 / static_cast<double>(shape.num_tokens);
  sum_columns(shape, ValueOf{logits, columns}, scale, partial, norm.mean, stream);
  sum_columns(shape, SquareOff{logits, norm.mean, columns}, scale, partial, norm.variance, stream);
  const std::int64_t elements = shape.num_tokens * columns;
  normalise_kernel<<<blocks_of(elements), kThreads, 0, stream>>>(elements, columns, logits, norm);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

void launch_router_norm_backward(const LayerShape& shape, DeviceLogProbs log_probs, const float* lse,
                                 DeviceNorm norm, const float* gradient, float* before, void* workspace,
                                 cudaStream_t stream) {
  const std::int64_t columns = shape.grid_rows + shape.grid_cols;
  auto* const partial = static_cast<double*>(workspace);
  double* const mean = partial + parts_of(shape.num_tokens).count * columns;
  double* const mean_normalised = mean + columns;
  const double scale = 1.0 / static_cast<double>(shape.num_tokens);
  const Normalised normalised{log_probs, lse, shape.num_tokens, shape.grid_rows};
  sum_columns(shape, ValueOf{gradient, columns}, scale, partial, mean, stream);
  sum_columns(shape, GradientTimesNormalised{gradient, columns, normalised}, scale, partial, mean_normalised,
              stream);
  const std::int64_t elements = shape.num_tokens * columns;
  norm_backward_kernel<<<blocks_of(elements), kThreads, 0, stream>>>(elements, columns, normalised, norm,
                                                                     gradient, mean, mean_normalised, before);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
