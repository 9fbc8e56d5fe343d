#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/layer/dtype.hpp"
#include "core/layer/optimizer.hpp"

/// The optimizer's step on the tables of experts: AdamW as reference/backward/experts_optimizer.hpp has it.
/// Conventions as in launch.hpp.
namespace moescope::cuda {

/// Where the optimizer is and what its step needs of it: device memory, as steps are counted there, so that a
/// graph of a training step can be replayed.
struct AdamWClock {
  std::int32_t* step = nullptr;  ///< [1] steps taken; 0 before the first
  float* factors = nullptr;      ///< [2] of the step at hand
};

/// Which rows: `rows` [*count], ascending and distinct. Null: all of them.
struct OptimizerRows {
  const std::int32_t* rows = nullptr;
  const std::int32_t* count = nullptr;
};

/// A table, W or V, with its state. Everything 16-byte aligned.
struct AdamWTable {
  float* master = nullptr;         ///< [N,d] the weights in fp32
  float* first = nullptr;          ///< [N,d] first moments; 0 before the first step
  float* second = nullptr;         ///< [N,d] second moments
  const void* gradient = nullptr;  ///< [N,d]; of launch_adamw_catch_up not read
  void* weights = nullptr;         ///< [N,d] in `storage`: the rows that were stepped, rounded
};

struct AdamWTables {
  AdamWTable tables[2];  ///< W and V
  std::int32_t* last_step = nullptr;  ///< [N] step in which a row was last written; 0 before the first
  std::int64_t num_experts = 0;
  std::int64_t hidden_size = 0;  ///< a multiple of 4
  Dtype gradients = Dtype::kBF16;
  Dtype storage = Dtype::kBF16;
};

/// The state before the first step: `weights` as they are, in fp32; everything else zero.
void launch_adamw_start(const AdamWTables& tables, AdamWClock clock, cudaStream_t stream);
/// One step more: the rows that are listed make up for the steps they missed, then take part in this one. Rows
/// that are not listed are not touched. Bit-repeatable. Throws InvalidArgument for options or extents.
void launch_adamw_step(const AdamWTables& tables, const AdamWOptions& options, OptimizerRows rows,
                       AdamWClock clock, cudaStream_t stream);
/// The rows make up for the steps that they missed, up to the last one: before a forward that is to read what a
/// dense optimizer would have (rows of its selection), or before a checkpoint (all).
void launch_adamw_catch_up(const AdamWTables& tables, const AdamWOptions& options, OptimizerRows rows,
                           AdamWClock clock, cudaStream_t stream);

}  // namespace moescope::cuda
