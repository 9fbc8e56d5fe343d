// Stage experts_optimizer: AdamW on rows of W and V, reference/backward/experts_optimizer.cpp on the GPU.
//
// A warp takes 128 columns of one row of W or of V, whose weights, moments and gradient come in four loads of
// 16 bytes a lane (8 of a bf16 gradient) and go back in four stores: 28 bytes a parameter in all, no shared
// memory. What is limited is HBM. A row that missed steps makes up for them first: lanes work out 32 steps'
// factors at a time, in fp64 as the reference does. Rows' last steps are written by a kernel of its own
// behind, since several warps read each.
#include <algorithm>
#include <limits>

#include "core/base/error.hpp"
#include "kernels/contract/optimizer.hpp"
#include "kernels/device/block_ops.cuh"
#include "kernels/device/four_values.cuh"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvtx.hpp"

namespace moescope::cuda {
namespace {

constexpr int kAdamWWarps = 8;
constexpr int kAdamWBlocksPerSm = 4;  // 64 registers a thread: none of them spilled on the usual way
constexpr int kAdamWColumns = 4 * kWarp;

struct AdamWArgs {
  AdamWTable tables[2];
  std::int32_t* last_step;
  const std::int32_t* rows;
  const std::int32_t* count;
  const std::int32_t* step;
  const float* factors;
  std::int32_t num_experts;
  std::int32_t hidden_size;
  std::int32_t chunks;  ///< of a row
  double learning_rate;
  double beta1;
  double beta2;
  double kept;  ///< of a weight by one step's decay
  float eps;
  std::int32_t replay_steps;
};

/// learning_rate / (1 - beta1^t) and 1 / (1 - beta2^t). A call, for those who seldom need it; by value, since
/// what a call has the address of lies in local memory all the time.
__device__ __noinline__ float2 step_factors(double learning_rate, double beta1, double beta2,
                                            std::int32_t t) {
  return {static_cast<float>(learning_rate / (1 - pow(beta1, static_cast<double>(t)))),
          static_cast<float>(1 / (1 - pow(beta2, static_cast<double>(t))))};
}
__device__ __noinline__ float power(double base, double exponent) {
  return static_cast<float>(pow(base, exponent));
}

__global__ void adamw_clock_kernel(const AdamWArgs args, std::int32_t* step, float* factors) {
  const std::int32_t t = *step + 1;
  *step = t;
  const float2 of_step = step_factors(args.learning_rate, args.beta1, args.beta2, t);
  factors[0] = of_step.x;
  factors[1] = of_step.y;
}

/// Four parameters of a lane.
struct Quad {
  float w[4];
  float m[4];
  float v[4];

  __device__ __forceinline__ void move(float2 factors, float keep, float eps) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      w[i] = w[i] * keep - factors.x * m[i] / (sqrtf(v[i] * factors.y) + eps);
    }
  }
};

/// Steps after `last` up to `until`, in which the row had no gradient. All lanes of a warp have one row.
__device__ __forceinline__ void make_up(const AdamWArgs& args, std::int32_t last, std::int32_t until,
                                        Quad& quad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int32_t missed = until - last;
  const std::int32_t replayed = min(missed, args.replay_steps);
  const auto beta1 = static_cast<float>(args.beta1);
  const auto beta2 = static_cast<float>(args.beta2);
  const auto keep = static_cast<float>(args.kept);
  for (std::int32_t base = 0; base < replayed; base += kWarp) {
    const float2 own = step_factors(args.learning_rate, args.beta1, args.beta2, last + 1 + base + lane);
    const int steps = min(kWarp, replayed - base);
    for (int j = 0; j < steps; ++j) {
      const float2 factors = {__shfl_sync(kAllLanes, own.x, j), __shfl_sync(kAllLanes, own.y, j)};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        quad.m[i] *= beta1;
        quad.v[i] *= beta2;
      }
      quad.move(factors, keep, args.eps);
    }
  }
  if (missed > replayed) {
    const double rest = missed - replayed;
    const float first = power(args.beta1, rest);
    const float second = power(args.beta2, rest);
    const float decay = power(args.kept, rest);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      quad.m[i] *= first;
      quad.v[i] *= second;
      quad.w[i] *= decay;
    }
  }
}

/// kStep: the missed steps and the one at hand; else the missed ones alone.
template <class Gradient, class Storage, bool kStep>
__global__ void __launch_bounds__(kAdamWWarps* kWarp, kAdamWBlocksPerSm)
    adamw_kernel(const __grid_constant__ AdamWArgs args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t rows = args.count == nullptr ? args.num_experts : *args.count;
  const std::int32_t parts = 2 * args.chunks;
  const std::int64_t units = rows * parts;
  const std::int64_t warps = std::int64_t{gridDim.x} * kAdamWWarps;
  const std::int32_t step = *args.step;
  const float2 factors = {args.factors[0], args.factors[1]};
  const auto keep = static_cast<float>(args.kept);
  const auto beta1 = static_cast<float>(args.beta1);
  const auto beta2 = static_cast<float>(args.beta2);

  // A unit's row and its last step are asked for one unit ahead.
  std::int64_t unit = std::int64_t{blockIdx.x} * kAdamWWarps + static_cast<int>(threadIdx.x) / kWarp;
  const auto row_of = [&](std::int64_t of) {
    return args.rows == nullptr ? static_cast<std::int32_t>(of / parts) : args.rows[of / parts];
  };
  std::int32_t row = unit < units ? row_of(unit) : 0;
  std::int32_t last = unit < units ? args.last_step[row] : 0;
  for (; unit < units; unit += warps) {
    const auto part = static_cast<std::int32_t>(unit % parts);
    const bool is_out = part >= args.chunks;
    const std::int32_t col = (is_out ? part - args.chunks : part) * kAdamWColumns + 4 * lane;
    const bool inside = col < args.hidden_size;
    const AdamWTable& table = args.tables[is_out ? 1 : 0];
    const std::int64_t at = std::int64_t{row} * args.hidden_size + (inside ? col : 0);
    Quad quad;
    float g[4] = {};
    load_four(table.master + at, quad.w);
    load_four(table.first + at, quad.m);
    load_four(table.second + at, quad.v);
    if constexpr (kStep) {
      load_four(static_cast<const Gradient*>(table.gradient) + at, g);
    }
    const std::int32_t since = last;
    if (unit + warps < units) {
      row = row_of(unit + warps);
      last = args.last_step[row];
    }
    if (const std::int32_t until = kStep ? step - 1 : step; since < until) {
      make_up(args, since, until, quad);
    } else if constexpr (!kStep) {
      continue;
    }
    if constexpr (kStep) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        quad.m[i] = beta1 * quad.m[i] + (1 - beta1) * g[i];
        quad.v[i] = beta2 * quad.v[i] + (1 - beta2) * g[i] * g[i];
      }
      quad.move(factors, keep, args.eps);
    }
    if (inside) {
      store_four(table.master + at, quad.w);
      store_four(table.first + at, quad.m);
      store_four(table.second + at, quad.v);
      store_four(static_cast<Storage*>(table.weights) + at, quad.w);
    }
  }
}

__global__ void __launch_bounds__(kAdamWWarps* kWarp) adamw_last_step_kernel(const AdamWArgs args) {
  const std::int32_t rows = args.count == nullptr ? args.num_experts : *args.count;
  const std::int32_t step = *args.step;
  const auto stride = static_cast<std::int32_t>(gridDim.x * blockDim.x);
  for (auto i = static_cast<std::int32_t>(blockIdx.x * blockDim.x + threadIdx.x); i < rows; i += stride) {
    args.last_step[args.rows == nullptr ? i : args.rows[i]] = step;
  }
}

template <class Storage>
__global__ void __launch_bounds__(kAdamWWarps* kWarp)
    adamw_start_kernel(std::int64_t quads, AdamWTable table, std::int64_t num_experts, AdamWClock clock,
                       std::int32_t* last_step) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const float zeros[4] = {};
  for (std::int64_t i = first; i < quads; i += stride) {
    float w[4];
    load_four(static_cast<const Storage*>(table.weights) + 4 * i, w);
    store_four(table.master + 4 * i, w);
    store_four(table.first + 4 * i, zeros);
    store_four(table.second + 4 * i, zeros);
  }
  for (std::int64_t i = first; i < num_experts; i += stride) {
    last_step[i] = 0;
  }
  if (first == 0) {
    *clock.step = 0;
    clock.factors[0] = 0;
    clock.factors[1] = 0;
  }
}

AdamWArgs adamw_args(const AdamWTables& tables, const AdamWOptions& options, OptimizerRows rows,
                     AdamWClock clock) {
  options.validate();
  if (tables.hidden_size < 4 || tables.hidden_size % 4 != 0) {
    throw InvalidArgument("hidden_size", fmt::to_string(tables.hidden_size),
                          "must be a multiple of 4 for the optimizer on the GPU");
  }
  if (tables.num_experts < 1 || tables.num_experts >= std::int64_t{1} << 31U) {
    throw InvalidArgument("num_experts", fmt::to_string(tables.num_experts), "must be in [1, 2^31)");
  }
  constexpr std::int64_t kMostReplayed = std::numeric_limits<std::int32_t>::max();  // of as many steps
  return {.tables = {tables.tables[0], tables.tables[1]},
          .last_step = tables.last_step,
          .rows = rows.rows,
          .count = rows.count,
          .step = clock.step,
          .factors = clock.factors,
          .num_experts = static_cast<std::int32_t>(tables.num_experts),
          .hidden_size = static_cast<std::int32_t>(tables.hidden_size),
          .chunks = static_cast<std::int32_t>((tables.hidden_size + kAdamWColumns - 1) / kAdamWColumns),
          .learning_rate = options.learning_rate,
          .beta1 = options.beta1,
          .beta2 = options.beta2,
          .kept = 1 - options.learning_rate * options.weight_decay,
          .eps = static_cast<float>(options.eps),
          .replay_steps = static_cast<std::int32_t>(std::min(options.replay_steps, kMostReplayed))};
}

template <bool kStep>
void run(const AdamWTables& tables, const AdamWArgs& args, cudaStream_t stream) {
  const std::int64_t units = tables.num_experts * 2 * args.chunks;
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(current_gpu().num_sms * kAdamWBlocksPerSm,
                                                                   (units + kAdamWWarps - 1) / kAdamWWarps));
  const auto launch = [&]<class Gradient, class Storage>(Gradient, Storage) {
    adamw_kernel<Gradient, Storage, kStep><<<blocks, kAdamWWarps * kWarp, 0, stream>>>(args);
  };
  const auto with_storage = [&](auto gradient) {
    tables.storage == Dtype::kBF16 ? launch(gradient, __nv_bfloat16{}) : launch(gradient, float{});
  };
  tables.gradients == Dtype::kBF16 ? with_storage(__nv_bfloat16{}) : with_storage(float{});
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  constexpr std::int64_t kThreads = std::int64_t{kAdamWWarps} * kWarp;
  const auto marks = static_cast<unsigned>(
      std::min<std::int64_t>((tables.num_experts + kThreads - 1) / kThreads, current_gpu().num_sms * 8));
  adamw_last_step_kernel<<<marks, kThreads, 0, stream>>>(args);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void launch_adamw_start(const AdamWTables& tables, AdamWClock clock, cudaStream_t stream) {
  (void)adamw_args(tables, {}, {}, clock);
  const std::int64_t quads = tables.num_experts * tables.hidden_size / 4;
  const auto blocks = static_cast<unsigned>(current_gpu().num_sms * 8);
  for (const AdamWTable& table : tables.tables) {
    const auto start = [&]<class Storage>(Storage /*type*/) {
      adamw_start_kernel<Storage><<<blocks, kAdamWWarps * kWarp, 0, stream>>>(
          quads, table, tables.num_experts, clock, tables.last_step);
    };
    tables.storage == Dtype::kBF16 ? start(__nv_bfloat16{}) : start(float{});
    MOESCOPE_CUDA_CHECK(cudaGetLastError());
  }
}

void launch_adamw_step(const AdamWTables& tables, const AdamWOptions& options, OptimizerRows rows,
                       AdamWClock clock, cudaStream_t stream) {
  const StageRange range(Stage::kExpertsOptimizer);
  const AdamWArgs args = adamw_args(tables, options, rows, clock);
  adamw_clock_kernel<<<1, 1, 0, stream>>>(args, clock.step, clock.factors);
  MOESCOPE_CUDA_CHECK(cudaGetLastError());
  run<true>(tables, args, stream);
}

void launch_adamw_catch_up(const AdamWTables& tables, const AdamWOptions& options, OptimizerRows rows,
                           AdamWClock clock, cudaStream_t stream) {
  const StageRange range(Stage::kExpertsOptimizer);
  run<false>(tables, adamw_args(tables, options, rows, clock), stream);
}

}  // namespace moescope::cuda
