#include "kernels/layer/graphed_layer.hpp"

#include <algorithm>

#include "kernels/probes/memory_stream.hpp"

namespace moescope::cuda {

DeviceContext::DeviceContext()
    : info(device_info()), nvml(info.pci_bus_id), flush(2 * std::max(info.l2_bytes, std::int64_t{1})) {}

template <class Execution>
GraphedExecution<Execution>::GraphedExecution(std::shared_ptr<DeviceContext> context,
                                              std::vector<Stage> stages)
    : context_(std::move(context)), stages_(std::move(stages)), stage_events_(stages_.size() + 1) {}

template <class Execution>
bool GraphedExecution<Execution>::has(Stage stage) const {
  return std::ranges::find(stages_, stage) != stages_.end();
}

template <class Execution>
void GraphedExecution<Execution>::capture() {
  enqueue_start();
  for (const Stage stage : stages_) {
    enqueue(stage);
  }
  wait_for_stream();
  stage_graph_ = capture_graph(stream_.get(), [&] {
    enqueue_start();
    record_in_graph(stage_events_[0]);
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      enqueue(stages_[i]);
      record_in_graph(stage_events_[i + 1]);
    }
  });
  layer_graph_ = capture_layer();
}

template <class Execution>
void GraphedExecution<Execution>::record_in_graph(const Event& event) {
  MOESCOPE_CUDA_CHECK(cudaEventRecordWithFlags(event.get(), stream_.get(), cudaEventRecordExternal));
}

template <class Execution>
CudaGraphExec GraphedExecution<Execution>::capture_layer() {
  return capture_graph(stream_.get(), [&] {
    enqueue_start();
    record_in_graph(layer_events_[0]);
    enqueue_overlapped();
    record_in_graph(layer_events_[1]);
  });
}

template <class Execution>
double GraphedExecution<Execution>::run_layer(const CudaGraphExec& graph, L2State l2) {
  flush_if(l2);
  MOESCOPE_CUDA_CHECK(cudaGraphLaunch(graph.get(), stream_.get()));
  wait_for_stream();
  return layer_events_[1].seconds_since(layer_events_[0]);
}

template <class Execution>
void GraphedExecution<Execution>::fork() {
  fork_.record(stream_.get());
  MOESCOPE_CUDA_CHECK(cudaStreamWaitEvent(side_stream_.get(), fork_.get(), 0));
}

template <class Execution>
void GraphedExecution<Execution>::join() {
  join_.record(side_stream_.get());
  MOESCOPE_CUDA_CHECK(cudaStreamWaitEvent(stream_.get(), join_.get(), 0));
}

template <class Execution>
void GraphedExecution<Execution>::flush_if(L2State l2) {
  if (l2 == L2State::kCold) {
    const Bytes& flush = context_->flush;
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(flush.get(), 0xa5, static_cast<std::size_t>(flush.bytes()), stream_.get()));
  }
}

template <class Execution>
std::vector<StageTime> GraphedExecution<Execution>::run(L2State l2) {
  flush_if(l2);
  MOESCOPE_CUDA_CHECK(cudaGraphLaunch(stage_graph_.get(), stream_.get()));
  const double layer = run_layer(layer_graph_, l2);
  check_logits();
  std::vector<StageTime> times;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    times.push_back({stages_[i], stage_events_[i + 1].seconds_since(stage_events_[i])});
  }
  times.push_back({Stage::kLayer, layer});
  return times;
}

template <class Execution>
void GraphedExecution<Execution>::empty_cache() {
  flush_if(L2State::kCold);
  const Bytes& flush = context_->flush;
  launch_memory_read(flush.get(), flush.bytes(), stream_.get());
  stream_.synchronize();
}

template class GraphedExecution<LayerExecution>;
template class GraphedExecution<TrainingExecution>;

}  // namespace moescope::cuda
