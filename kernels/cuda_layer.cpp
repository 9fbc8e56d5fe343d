#include "kernels/cuda_layer.hpp"

#include <algorithm>

#include "kernels/memory_stream.hpp"
#include "kernels/nvtx.hpp"

namespace moescope::cuda {
namespace {

bool needs_schedule(ScheduleKind kind) {
  return kind == ScheduleKind::kExpertCentric || kind == ScheduleKind::kStaircase;
}
bool combines_apart(const ScheduleOptions& options) {
  return options.kind == ScheduleKind::kStaircase && options.deterministic;
}
std::int64_t logits_bytes(const LayerShape& shape) {
  return shape.num_tokens * (shape.grid_rows + shape.grid_cols) * static_cast<std::int64_t>(sizeof(float));
}
std::int64_t scores_bytes(const LayerShape& shape) {
  return shape.num_pairs() * static_cast<std::int64_t>(sizeof(float));
}
/// Of a buffer that follows another in the scratch; cuBLASLt and 16-byte loads like it aligned.
constexpr std::int64_t align_up(std::int64_t bytes) { return (bytes + 255) / 256 * 256; }

/// Ends a capture that an exception left open, so that the stream can be destroyed.
class CaptureGuard {
 public:
  explicit CaptureGuard(cudaStream_t stream) : stream_(stream) {
    MOESCOPE_CUDA_CHECK(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
  }
  CaptureGuard(const CaptureGuard&) = delete;
  CaptureGuard& operator=(const CaptureGuard&) = delete;
  ~CaptureGuard() {
    if (open_) {
      cudaGraph_t graph = nullptr;
      (void)cudaStreamEndCapture(stream_, &graph);
      if (graph != nullptr) {
        (void)cudaGraphDestroy(graph);
      }
    }
  }
  cudaGraph_t end() {
    open_ = false;
    cudaGraph_t graph = nullptr;
    MOESCOPE_CUDA_CHECK(cudaStreamEndCapture(stream_, &graph));
    return graph;
  }

 private:
  cudaStream_t stream_;
  bool open_ = true;
};

}  // namespace

DeviceContext::DeviceContext()
    : info(device_info()), nvml(info.pci_bus_id), flush(2 * std::max(info.l2_bytes, std::int64_t{1})) {}

std::int64_t LayerMemoryPlan::total_bytes() const {
  return hidden_states + router + experts + routing + output + accumulators + schedule + scratch + library;
}

std::vector<Stage> layer_stages(const LayerShape& shape, const ScheduleOptions& options, bool fixed_routing) {
  std::vector<Stage> stages;
  if (!fixed_routing) {
    stages = {Stage::kRouterProject, Stage::kRouterSelect};
  }
  if (needs_schedule(options.kind)) {
    stages.push_back(Stage::kSchedule);
  }
  if (combines_apart(options)) {
    stages.push_back(Stage::kExpertScores);
    stages.push_back(Stage::kExpertCombine);
  } else {
    stages.push_back(Stage::kExperts);
  }
  if (shape.shared_size > 0) {
    stages.push_back(Stage::kSharedMlp);
  }
  return stages;
}

LayerMemoryPlan plan_layer_memory(const LayerShape& shape, const ScheduleOptions& options,
                                  bool fixed_routing) {
  const std::int64_t outputs = shape.num_tokens * shape.hidden_size;
  LayerMemoryPlan plan;
  plan.hidden_states = outputs * dtype_bytes(shape.dtype);
  plan.router = fixed_routing ? 0 : RouterBuffers::required_bytes(shape);
  plan.experts = ExpertBuffers::required_bytes(shape);
  plan.routing = RoutingBuffers::required_bytes(shape);
  plan.output = outputs * dtype_bytes(shape.dtype);
  plan.accumulators = shape.dtype == Dtype::kF32 ? 0 : outputs * static_cast<std::int64_t>(sizeof(float));
  plan.library = CublasLt::kWorkspaceBytes;
  ScheduleCapacity capacity;
  if (needs_schedule(options.kind)) {
    capacity = schedule_capacity(shape, options);
    plan.schedule = capacity.array_bytes;
  } else if (options.kind == ScheduleKind::kSparseLibrary) {
    plan.schedule = SparseLibrary::memory_bytes(shape);
  }
  const bool dense = options.kind == ScheduleKind::kDenseMasked;

  std::int64_t held = plan.accumulators + plan.schedule + plan.library;
  for (const Stage stage : layer_stages(shape, options, fixed_routing)) {
    std::int64_t scratch = 0;  // of this stage: what it makes and hands on included
    std::int64_t other = 0;
    switch (stage) {
      case Stage::kRouterProject:
        scratch = logits_bytes(shape);
        other = plan.library;
        break;
      case Stage::kRouterSelect:
        scratch = align_up(logits_bytes(shape)) + router_select_workspace_bytes(shape);
        break;
      case Stage::kSchedule:
        scratch = capacity.workspace_bytes;
        other = plan.schedule;
        break;
      case Stage::kExpertScores:
        scratch = scores_bytes(shape);
        other = plan.schedule;
        break;
      case Stage::kExpertCombine:
        scratch = scores_bytes(shape);
        other = plan.accumulators;
        break;
      case Stage::kExperts:
        scratch = dense ? dense_masked_workspace_bytes(shape) : 0;
        other = plan.accumulators + plan.schedule + (dense ? plan.library : 0);
        break;
      case Stage::kSharedMlp:
        scratch = shared_mlp_workspace_bytes(shape);
        other = plan.accumulators + plan.library;
        break;
      case Stage::kLayer:
        break;
    }
    plan.scratch = std::max(plan.scratch, scratch);
    plan.stages.push_back({stage, scratch + other});
  }
  held += plan.scratch;
  plan.stages.push_back({Stage::kLayer, held});
  return plan;
}

CudaLayer::CudaLayer(std::shared_ptr<DeviceContext> context, std::shared_ptr<const ExpertBuffers> experts,
                     const LayerInputs& inputs, const ScheduleOptions& options)
    : context_(std::move(context)),
      experts_(std::move(experts)),
      inputs_(inputs),
      options_(options),
      plan_(plan_layer_memory(inputs.shape, options, inputs.fixed_routing.has_value())),
      stages_(layer_stages(inputs.shape, options, inputs.fixed_routing.has_value())),
      hidden_states_(upload(inputs.hidden_states, stream_.get())),
      y_(make_filled<float>(inputs.shape.num_tokens * inputs.shape.hidden_size, stream_.get())),
      output_(inputs.shape.dtype == Dtype::kF32 ? 0 : plan_.output),
      scratch_(make_filled<std::byte>(plan_.scratch, stream_.get())),
      events_(stages_.size() + 1) {
  const LayerShape& shape = inputs.shape;
  if (inputs.fixed_routing.has_value()) {
    routing_.emplace(shape, *inputs.fixed_routing, stream_.get());
  } else {
    router_ = RouterBuffers(shape, inputs.router, stream_.get());
    routing_.emplace(shape);
    bad_logit_ = DeviceBuffer<std::int64_t>(1);
  }
  experts_->describe(weights_);
  router_.describe(weights_);
  if (needs_schedule(options.kind)) {
    schedule_ = ScheduleBuffers(shape, options);
  } else if (options.kind == ScheduleKind::kSparseLibrary) {
    sparse_.emplace(shape, hidden_states_.get(), weights_, routing_->view(), y_.get(), stream_.get());
  }
  for (const Stage stage : stages_) {
    enqueue(stage);
  }
  stream_.synchronize();
  capture();
}

void CudaLayer::capture() {
  CaptureGuard guard(stream_.get());
  const auto record = [&](const Event& event) {
    MOESCOPE_CUDA_CHECK(cudaEventRecordWithFlags(event.get(), stream_.get(), cudaEventRecordExternal));
  };
  record(events_[0]);
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    enqueue(stages_[i]);
    record(events_[i + 1]);
  }
  cudaGraph_t graph = guard.end();
  cudaGraphExec_t executable = nullptr;
  const cudaError_t result = cudaGraphInstantiate(&executable, graph, 0);
  (void)cudaGraphDestroy(graph);
  MOESCOPE_CUDA_CHECK(result);
  graph_.reset(executable);
}

void CudaLayer::enqueue(Stage stage) {
  const LayerShape& shape = inputs_.shape;
  cudaStream_t stream = stream_.get();
  std::byte* const scratch = scratch_.get();
  switch (stage) {
    case Stage::kRouterProject:
      launch_router_project(blas_, shape, hidden_states_.get(), weights_,
                            static_cast<float*>(static_cast<void*>(scratch)), stream);
      break;
    case Stage::kRouterSelect:
      launch_router_select(shape, static_cast<const float*>(static_cast<const void*>(scratch)),
                           routing_->view(), bad_logit_.get(), scratch + align_up(logits_bytes(shape)),
                           stream);
      break;
    case Stage::kSchedule:
      launch_schedule(shape, options_, routing_->view(), schedule_.view(), scratch, stream);
      break;
    case Stage::kExpertScores:
    case Stage::kExpertCombine:
    case Stage::kExperts:
      enqueue_experts(stage);
      break;
    case Stage::kSharedMlp:
      launch_shared_mlp(blas_, shape, hidden_states_.get(), weights_, scratch, y_.get(), stream);
      break;
    case Stage::kLayer:
      throw InternalError("the layer is no stage of its own");
  }
  if (stage == stages_.back() && shape.dtype == Dtype::kBF16) {
    const StageRange range(stage);
    launch_round_output(shape, y_.get(), output_.get(), stream);
  }
}

void CudaLayer::enqueue_experts(Stage stage) {
  const LayerShape& shape = inputs_.shape;
  cudaStream_t stream = stream_.get();
  const void* const x = hidden_states_.get();
  auto* const scores = static_cast<float*>(static_cast<void*>(scratch_.get()));
  if (stage == Stage::kExpertScores) {
    launch_expert_scores_tiles(shape, options_, x, weights_, routing_->view(), schedule_.view(), scores,
                               stream);
    return;
  }
  if (stage == Stage::kExpertCombine) {
    launch_expert_combine(shape, weights_, routing_->view(), scores, y_.get(), stream);
    return;
  }
  switch (options_.kind) {
    case ScheduleKind::kTokenCentric:
      launch_experts_token_centric(shape, x, weights_, routing_->view(), y_.get(), stream);
      break;
    case ScheduleKind::kExpertCentric:
    case ScheduleKind::kStaircase:
      launch_experts_tiles(shape, options_, x, weights_, routing_->view(), schedule_.view(), y_.get(),
                           stream);
      break;
    case ScheduleKind::kDenseMasked:
      launch_experts_dense_masked(blas_, shape, x, weights_, routing_->view(), scratch_.get(), y_.get(),
                                  stream);
      break;
    case ScheduleKind::kSparseLibrary:
      sparse_->launch(stream);
      break;
    case ScheduleKind::kAuto:
      throw InternalError("schedule auto is resolved before a layer is prepared");
  }
}

std::vector<StageTime> CudaLayer::run(L2State l2) {
  if (l2 == L2State::kCold) {
    const Bytes& flush = context_->flush;
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(flush.get(), 0xa5, static_cast<std::size_t>(flush.bytes()), stream_.get()));
  }
  MOESCOPE_CUDA_CHECK(cudaGraphLaunch(graph_.get(), stream_.get()));
  stream_.synchronize();
  check_logits();
  std::vector<StageTime> times;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    times.push_back({stages_[i], events_[i + 1].seconds_since(events_[i])});
  }
  times.push_back({Stage::kLayer, events_.back().seconds_since(events_.front())});
  return times;
}

void CudaLayer::empty_cache() {
  const Bytes& flush = context_->flush;
  MOESCOPE_CUDA_CHECK(
      cudaMemsetAsync(flush.get(), 0xa5, static_cast<std::size_t>(flush.bytes()), stream_.get()));
  launch_memory_read(flush.get(), flush.bytes(), stream_.get());
  stream_.synchronize();
}

void CudaLayer::check_logits() {
  if (inputs_.fixed_routing.has_value()) {
    return;
  }
  std::int64_t bad = 0;
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(&bad, bad_logit_.get(), sizeof bad, cudaMemcpyDeviceToHost, stream_.get()));
  stream_.synchronize();
  if (bad >= 0) {
    enqueue(Stage::kRouterProject);  // later stages have reused the place of the logits
    throw_bad_logit(download_logits(
        inputs_.shape, static_cast<const float*>(static_cast<const void*>(scratch_.get())), stream_.get()));
  }
}

HostTensor CudaLayer::output() {
  const LayerShape& shape = inputs_.shape;
  const void* const data = shape.dtype == Dtype::kF32 ? static_cast<const void*>(y_.get()) : output_.get();
  return download(shape.dtype, shape.num_tokens, shape.hidden_size, data, stream_.get());
}

Routing CudaLayer::routing() { return routing_->download(inputs_.shape, stream_.get()); }

bool CudaLayer::deterministic() const {
  switch (options_.kind) {
    case ScheduleKind::kTokenCentric:
    case ScheduleKind::kDenseMasked:
      return true;
    case ScheduleKind::kStaircase:
      return options_.deterministic;
    case ScheduleKind::kExpertCentric:  // the paper's scatter-add
    case ScheduleKind::kSparseLibrary:  // cuSPARSE promises nothing
    case ScheduleKind::kAuto:
      break;
  }
  return false;
}

}  // namespace moescope::cuda
