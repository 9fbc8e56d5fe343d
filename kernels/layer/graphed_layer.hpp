#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <memory>
#include <span>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/backend/training_execution.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/runtime/cuda_graph.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "kernels/runtime/device_info.hpp"
#include "kernels/runtime/nvml.hpp"

namespace moescope::cuda {

/// What the layers of one backend share: the device, its clocks, and the buffer that empties the L2 cache.
struct DeviceContext {
  DeviceContext();

  DeviceInfo info;
  Nvml nvml;
  Bytes flush;  ///< twice the L2 cache; written before a cold run
};

/// What all layers on the GPU have in common: stages on a stream, captured as two CUDA graphs. A capture
/// fails if anything between the first and the last kernel synchronises with the host or allocates. run()
/// replays both:
/// * all stages one after another with events between them: the stage times;
/// * what a user would run, with an event at either end only: the layer's time. There what does not need the
///   routing runs beside it on a second stream, and kernels may be launched before the one they depend on has
///   finished, which events in between would forbid. So the layer takes less time than its stages together.
/// Execution: LayerExecution, or TrainingExecution for a backward.
template <class Execution>
class GraphedExecution : public Execution {
 public:
  std::vector<StageTime> run(L2State l2) final;
  ClockSample clocks() const final { return context_->nvml.sample(); }
  std::span<const Stage> stages() const final { return stages_; }
  /// Plain launches on stream(), in an NVTX range with the stage's name.
  void enqueue(Stage stage) override = 0;
  void synchronize() final { wait_for_stream(); }
  void empty_cache() final;
  cudaStream_t stream() const { return stream_.get(); }

 protected:
  GraphedExecution(std::shared_ptr<DeviceContext> context, std::vector<Stage> stages);

  /// Runs every stage once as plain launches (library warm-up), then captures both graphs. The last thing a
  /// derived class's constructor does.
  void capture();
  /// enqueue_overlapped() between the layer's two events, captured; and seconds of one run of such a graph.
  CudaGraphExec capture_layer();
  double run_layer(const CudaGraphExec& graph, L2State l2);
  /// Before a graph's first event: what is not to be timed. Part of the graph.
  virtual void enqueue_start() {}
  /// Blocks until stream() is done.
  virtual void wait_for_stream() { stream_.synchronize(); }
  /// The whole layer on stream(), as a user would run it.
  virtual void enqueue_overlapped() = 0;
  /// After a run has ended: throws InvalidArgument when the router saw a logit that is not finite.
  virtual void check_logits() = 0;

  /// From here on the second stream runs beside stream(), until join().
  void fork();
  /// stream() waits for what the second stream was given.
  void join();
  cudaStream_t side_stream() const { return side_stream_.get(); }
  bool has(Stage stage) const;
  /// Blocks until stream() is done, whatever wait_for_stream() does.
  void stream_synchronize() const { stream_.synchronize(); }

  std::shared_ptr<DeviceContext> context_;
  std::vector<Stage> stages_;

 private:
  void flush_if(L2State l2);
  void record_in_graph(const Event& event);

  Stream stream_;
  Stream side_stream_;
  std::vector<Event> stage_events_;  ///< before the first stage, then after each
  std::array<Event, 2> layer_events_;
  Event fork_;
  Event join_;
  CudaGraphExec stage_graph_;
  CudaGraphExec layer_graph_;
};

extern template class GraphedExecution<LayerExecution>;
extern template class GraphedExecution<TrainingExecution>;
using GraphedLayer = GraphedExecution<LayerExecution>;

}  // namespace moescope::cuda
