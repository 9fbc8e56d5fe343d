// The auxiliary losses' part of router_select_backward, on the router's factors: with F [Nr,Nc] the fraction
// of the batch's pairs that each expert has, r and c a token's probabilities of rows and columns:
//   balance: s * sum over t of r . F c, s = weight N / L;    da += s r (F c - r . F c), db likewise
//   z:       weight / L * sum over t of (lse_r + lse_c)^2;   da += 2 weight / L (lse_r + lse_c) r, db
//   likewise
// F c and F^T r are two products for the whole batch. Losses are summed over tokens in order, in fp64.
#include <cstddef>

#include "kernels/contract/backward.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/runtime/cublas_lt.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSumThreads = 256;
constexpr std::int64_t kAlignment = 256;

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Layout {
  std::int64_t tokens;         ///< [2, L] fp64: each token's part of a loss
  std::int64_t probabilities;  ///< [L, Nr+Nc]
  std::int64_t products;       ///< [L, Nr+Nc]: F c, F^T r
  std::int64_t fractions;      ///< [Nr, Nc]
  std::int64_t bytes;
};

Layout layout_of(const LayerShape& shape, const AuxiliaryLosses& losses) {
  const std::int64_t both = aligned(shape.num_tokens * (shape.grid_rows + shape.grid_cols) * 4);
  Layout layout{};
  layout.probabilities = aligned(2 * shape.num_tokens * static_cast<std::int64_t>(sizeof(double)));
  layout.products = layout.probabilities + (losses.balance > 0 ? both : 0);
  layout.fractions = layout.products + (losses.balance > 0 ? both : 0);
  layout.bytes = layout.fractions + (losses.balance > 0 ? aligned(shape.num_experts() * 4) : 0);
  return layout;
}

struct LossArgs {
  DeviceLogProbs log_probs;
  const float* lse;
  float* probabilities;   ///< null without a balance loss
  const float* products;  ///< null without a balance loss
  float* logits_gradient;
  double* tokens;
  std::int64_t num_tokens;
  std::int32_t rows;
  std::int32_t cols;
  double balance_scale;
  double z_scale;

  __device__ float probability(std::int64_t t, int i) const {
    return expf(i < rows ? log_probs.row[t * log_probs.row_lead + i]
                         : log_probs.col[t * log_probs.col_lead + i - rows]);
  }
};

/// One block per token.
__global__ void __launch_bounds__(kThreads) probabilities_kernel(const LossArgs args) {
  const std::int64_t token = blockIdx.x;
  const int sides = args.rows + args.cols;
  for (int i = static_cast<int>(threadIdx.x); i < sides; i += kThreads) {
    args.probabilities[token * sides + i] = args.probability(token, i);
  }
}

__global__ void __launch_bounds__(kThreads) fractions_kernel(std::int64_t num_experts, double num_pairs,
                                                             const std::int32_t* loads, float* fractions) {
  const std::int64_t expert = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (expert < num_experts) {
    fractions[expert] = static_cast<float>(loads[expert] / num_pairs);
  }
}

/// One block per token: its part of the losses, and what they add to its logits' gradients.
__global__ void __launch_bounds__(kThreads) add_losses_kernel(const LossArgs args) {
  using Threads = Block<kThreads>;
  const std::int64_t token = blockIdx.x;
  const int sides = args.rows + args.cols;
  const int thread = static_cast<int>(threadIdx.x);
  const bool balances = args.probabilities != nullptr;
  double of_rows = 0;
  double of_cols = 0;
  if (balances) {
    for (int i = thread; i < sides; i += kThreads) {
      const double term =
          static_cast<double>(args.probabilities[token * sides + i]) * args.products[token * sides + i];
      (i < args.rows ? of_rows : of_cols) += term;
    }
    of_rows = Threads::sum(of_rows);
    of_cols = Threads::sum(of_cols);
  }
  const double z =
      args.z_scale > 0 ? static_cast<double>(args.lse[token]) + args.lse[args.num_tokens + token] : 0.0;
  for (int i = thread; i < sides; i += kThreads) {
    double more = 0;
    float p;
    if (balances) {
      p = args.probabilities[token * sides + i];
      more =
          args.balance_scale * p * (args.products[token * sides + i] - (i < args.rows ? of_rows : of_cols));
    } else {
      p = args.probability(token, i);
    }
    more += 2 * args.z_scale * z * p;
    args.logits_gradient[token * sides + i] += static_cast<float>(more);
  }
  if (thread == 0) {
    args.tokens[token] = args.balance_scale * of_rows;
    args.tokens[args.num_tokens + token] = args.z_scale * z * z;
  }
}

/// One block per loss.
__global__ void __launch_bounds__(kSumThreads)
    sum_losses_kernel(std::int64_t num_tokens, const double* tokens, double* losses) {
  double sum = 0;
  for (std::int64_t t = threadIdx.x; t < num_tokens; t += kSumThreads) {
    sum += tokens[blockIdx.x * num_tokens + t];
  }
  sum = Block<kSumThreads>::sum(sum);
  if (threadIdx.x == 0) {
    losses[blockIdx.x] = sum;
  }
}

}  // namespace

std::int64_t router_losses_workspace_bytes(const LayerShape& shape, const AuxiliaryLosses& losses) {
  return losses.any() ? layout_of(shape, losses).bytes : 0;
}

void launch_router_losses(CublasLt& blas, const LayerShape& shape, const AuxiliaryLosses& weights,
                          DeviceLogProbs log_probs, const float* lse, const std::int32_t* loads,
                          float* logits_gradient, double* losses, void* workspace, cudaStream_t stream) {
  const Layout layout = layout_of(shape, weights);
  auto* const base = static_cast<std::byte*>(workspace);
  const auto floats = [&](std::int64_t offset) { return reinterpret_cast<float*>(base + offset); };
  const std::int64_t sides = shape.grid_rows + shape.grid_cols;
  const bool balances = weights.balance > 0;
  const auto tokens = static_cast<double>(shape.num_tokens);
  const LossArgs args{.log_probs = log_probs,
                      .lse = lse,
                      .probabilities = balances ? floats(layout.probabilities) : nullptr,
                      .products = balances ? floats(layout.products) : nullptr,
                      .logits_gradient = logits_gradient,
                      .tokens = reinterpret_cast<double*>(base),
                      .num_tokens = shape.num_tokens,
                      .rows = static_cast<std::int32_t>(shape.grid_rows),
                      .cols = static_cast<std::int32_t>(shape.grid_cols),
                      .balance_scale = weights.balance * static_cast<double>(shape.num_experts()) / tokens,
                      .z_scale = weights.z / tokens};
  const auto blocks = static_cast<unsigned>(shape.num_tokens);
  if (balances) {
    probabilities_kernel<<<blocks, kThreads, 0, stream>>>(args);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
    float* const fractions = floats(layout.fractions);
    fractions_kernel<<<static_cast<unsigned>((shape.num_experts() + kThreads - 1) / kThreads), kThreads, 0,
                       stream>>>(shape.num_experts(), static_cast<double>(shape.num_pairs()), loads,
                                 fractions);
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
    Gemm of_rows;  // F c of every token
    of_rows.m = shape.num_tokens;
    of_rows.n = shape.grid_rows;
    of_rows.k = shape.grid_cols;
    of_rows.in = Dtype::kF32;
    of_rows.a = args.probabilities + shape.grid_rows;
    of_rows.lda = sides;
    of_rows.b = fractions;
    of_rows.d = floats(layout.products);
    of_rows.ldd = sides;
    blas.run(of_rows, stream);
    Gemm of_cols = of_rows;  // F^T r
    of_cols.n = shape.grid_cols;
    of_cols.k = shape.grid_rows;
    of_cols.transpose_b = false;
    of_cols.a = args.probabilities;
    of_cols.d = floats(layout.products) + shape.grid_rows;
    blas.run(of_cols, stream);
  }
  add_losses_kernel<<<blocks, kThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  sum_losses_kernel<<<2, kSumThreads, 0, stream>>>(shape.num_tokens, args.tokens, losses);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace moescope::cuda
