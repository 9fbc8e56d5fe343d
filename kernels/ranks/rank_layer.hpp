#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/ranks/rank_network.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/buffers/strip_buffers.hpp"
#include "kernels/contract/ranks.hpp"
#include "kernels/layer/graphed_layer.hpp"
#include "kernels/ranks/peer_memory.hpp"
#include "kernels/ranks/rank_task.hpp"
#include "kernels/runtime/cublas_lt.hpp"

namespace moescope::cuda {

/// A rank's weights on its device. Blocks until they are there.
class RankWeightBuffers {
 public:
  static std::int64_t required_bytes(const LayerShape& shape, std::int64_t own_rows, std::int64_t own_cols);
  RankWeightBuffers(const LayerShape& shape, const RankWeights& weights, cudaStream_t stream);
  const DeviceWeights& weights() const { return device_; }
  const float* bound() const { return bound_.get(); }

 private:
  Bytes w_in_rows_;
  Bytes w_out_rows_;
  Bytes w_in_cols_;
  Bytes w_out_cols_;
  Bytes shared_gate_up_;
  Bytes shared_down_;
  DeviceBuffer<float> bound_;
  DeviceWeights device_;
};

/// One rank's part of a layer on several GPUs, each with a process of its own: the staircase schedule over
/// the strips that the rank owns, for the tokens of all ranks. All ranks make, connect and run it together.
///
/// The home of a token projects and selects for it. Its X goes to all ranks while it does, and
/// log-probabilities, thresholds and covers as they come; every rank computes the token's strips that it
/// owns; bf16 sums come back and are added in order of the ranks, in fp32, rounded once: bit-identical from
/// run to run where the schedule is. In the overlapped graph what is exchanged is behind the router on one
/// end, and the shared MLP behind the sums on the other.
class RankLayer final : public GraphedLayer {
 public:
  /// Device memory that it takes, but for weights.
  static std::int64_t required_bytes(const RankTask& task, std::int64_t rank, const GpuTraits& gpu);

  /// Allocates; nothing runs yet. `network` has to stay. Throws CudaError.
  RankLayer(std::shared_ptr<DeviceContext> context, RankTask task,
            std::shared_ptr<const RankWeightBuffers> weights, RankNetwork& network);
  /// All ranks together: reaches the others' memory, and captures the graphs.
  void connect();

  /// Seconds of the layer; `silent` phases (RankLinks): as if nothing travelled in them. All ranks together,
  /// behind a run() on the same inputs.
  double run_silent(std::uint32_t silent, L2State l2);

  HostTensor output() override;  ///< of the home's tokens [count, d]
  Routing routing() override;    ///< likewise
  std::vector<StageMemory> memory() const override;
  ScheduleOptions schedule_options() const override { return task_.options; }
  bool deterministic() const override { return task_.options.deterministic; }
  void enqueue(Stage stage) override { enqueue(stage, stream()); }
  std::string kernels(Stage stage) const override;
  /// Bytes that a token's home writes to each other rank: X, and what is said of the token, its cover at the
  /// longest.
  std::int64_t dispatch_bytes_per_token() const;

 private:
  void enqueue(Stage stage, cudaStream_t stream);
  void enqueue_start() override;
  void enqueue_overlapped() override;
  void check_logits() override;
  void wait_for_stream() override;

  void project(cudaStream_t stream);
  void select(cudaStream_t stream);
  void push_rows(cudaStream_t stream);
  void take_strips(cudaStream_t stream);
  void prepare_sums(cudaStream_t stream);
  /// The shared MLP of `count` home tokens.
  void share(std::int64_t first, std::int64_t count, cudaStream_t stream);
  StaircaseOutput sums() const;
  RankLinks links() const;
  DeviceStrips strips() const;
  std::byte* place(std::int64_t offset) const { return arena_memory_.own() + offset; }
  std::byte* own_rows() const;
  /// A rank that has not come to the phase that is waited for; -1: all have.
  std::int64_t missing_rank();

  RankTask task_;
  HomeTokens home_;
  LayerShape home_shape_;
  std::shared_ptr<const RankWeightBuffers> experts_;
  RouterBuffers router_;
  DeviceWeights weights_;  ///< of both
  RankNetwork& network_;
  RankArena arena_;
  PeerMemory arena_memory_;
  HostWatch watch_;
  std::uint32_t silent_ = 0;  ///< of what is being captured
  std::map<std::uint32_t, CudaGraphExec> silent_layers_;
  DeviceBuffer<std::uint32_t> counters_;  ///< epoch, then tickets
  CublasLt blas_;
  CublasLt shared_blas_;
  DeviceBuffer<float> logits_;  ///< [count, Nr+Nc]
  DeviceBuffer<std::int64_t> bad_logit_;
  StripBuffers home_strips_;  ///< the home's selection
  StripBuffers
      strips_;  ///< this rank's strips, of all tokens; log-probabilities and thresholds are the arena's
  DeviceBuffer<std::int32_t> owner_;
  DeviceBuffer<std::int32_t> places_;
  DeviceBuffer<std::int32_t> exponents_;
  Bytes sums_;
  Bytes output_;
  DeviceBuffer<float> shared_result_;
  Bytes shared_scratch_;
  Stream push_stream_;  ///< of higher priority: what others wait for goes first
  Event prepared_;
  Event ready_;
};

}  // namespace moescope::cuda
