#include "kernels/ranks/rank_layer.hpp"

#include <algorithm>
#include <thread>

#include "core/tiling/strip_tiles.hpp"
#include "kernels/buffers/strip_lists.hpp"
#include "kernels/runtime/host_copy.hpp"

namespace moescope::cuda {
namespace {

constexpr std::int64_t kFloatBytes = sizeof(float);

std::vector<Stage> rank_stages(const LayerShape& shape) {
  std::vector<Stage> stages = {Stage::kRouterProject, Stage::kRouterSelect, Stage::kTokenDispatch,
                               Stage::kSchedule, Stage::kExperts};
  if (shape.shared_size > 0) {
    stages.push_back(Stage::kSharedMlp);
  }
  stages.push_back(Stage::kTokenCombine);
  return stages;
}

/// The home's part of the shape; at least one token, for buffers.
LayerShape shape_of_home(const LayerShape& shape, HomeTokens home) {
  LayerShape own = shape;
  own.num_tokens = std::max<std::int64_t>(home.count, 1);
  return own;
}

StaircaseSums sums_kind(const RankTask& task) {
  return strips_sum_in_fp16(task.shape, task.options) ? StaircaseSums::kFp16 : StaircaseSums::kFixedPoint;
}

/// Which of the stored rows, or columns, each strip is; 0 for those that are elsewhere.
std::vector<std::int32_t> places_of_strips(const RankTask& task) {
  std::vector<std::int32_t> places(task.strip_owner.size());
  std::int32_t row = 0;
  std::int32_t col = 0;
  for (const std::int32_t own : task.weights->rows) {
    places[static_cast<std::size_t>(own)] = row++;
  }
  for (const std::int32_t own : task.weights->cols) {
    places[static_cast<std::size_t>(task.shape.grid_rows + own)] = col++;
  }
  return places;
}

template <class T>
DeviceBuffer<T> upload_values(const std::vector<T>& values) {
  DeviceBuffer<T> buffer(std::ssize(values));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpy(buffer.get(), values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return buffer;
}

Stream high_priority_stream() {
  int least = 0;
  int greatest = 0;
  MOESCOPE_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  return Stream(greatest);
}

}  // namespace

std::int64_t RankWeightBuffers::required_bytes(const LayerShape& shape, std::int64_t own_rows,
                                               std::int64_t own_cols) {
  return (2 * (own_rows * shape.grid_cols + own_cols * shape.grid_rows) + 3 * shape.shared_size) *
         shape.hidden_size * dtype_bytes(shape.dtype);
}

RankWeightBuffers::RankWeightBuffers(const LayerShape& shape, const RankWeights& weights, cudaStream_t stream)
    : w_in_rows_(upload(weights.w_in_rows, stream)),
      w_out_rows_(upload(weights.w_out_rows, stream)),
      w_in_cols_(upload(weights.w_in_cols, stream)),
      w_out_cols_(upload(weights.w_out_cols, stream)),
      bound_(2) {
  const std::int64_t strip =
      std::max(shape.grid_rows, shape.grid_cols) * shape.hidden_size * dtype_bytes(shape.dtype);
  for (Bytes* const matrix : {&w_in_rows_, &w_out_rows_, &w_in_cols_, &w_out_cols_}) {
    if (matrix->count() == 0) {  // no strip of this kind: a map needs memory all the same
      *matrix = Bytes(strip);
    }
  }
  device_.w_in = w_in_rows_.get();
  device_.w_out = w_out_rows_.get();
  device_.w_in_cols = w_in_cols_.get();
  device_.w_out_cols = w_out_cols_.get();
  device_.strip_rows = std::ssize(weights.rows);
  device_.strip_cols = std::ssize(weights.cols);
  if (weights.shared) {
    shared_gate_up_ = stack(weights.shared->gate, weights.shared->up, stream);
    shared_down_ = upload(weights.shared->down, stream);
    device_.shared_gate_up = shared_gate_up_.get();
    device_.shared_down = shared_down_.get();
  }
  // The bound of rows and of columns; the larger holds for both.
  std::vector<float> bounds(2, 0.0F);
  const auto find = [&](std::int64_t strips, std::int64_t experts, const Bytes& in, const Bytes& out,
                        int which) {
    if (strips > 0) {
      LayerShape some = shape;
      some.grid_rows = strips;
      some.grid_cols = experts;
      launch_expert_bound(some, {.w_in = in.get(), .w_out = out.get()}, bound_.get() + which, stream);
      bounds[static_cast<std::size_t>(which)] = copy_to_host(bound_.get() + which, 1, stream).front();
    }
  };
  find(device_.strip_rows, shape.grid_cols, w_in_rows_, w_out_rows_, 0);
  find(device_.strip_cols, shape.grid_rows, w_in_cols_, w_out_cols_, 1);
  bounds[0] = std::max(bounds[0], bounds[1]);
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(bound_.get(), bounds.data(), sizeof(float), cudaMemcpyHostToDevice, stream));
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

std::int64_t RankLayer::required_bytes(const RankTask& task, std::int64_t rank, const GpuTraits& gpu) {
  const LayerShape& shape = task.shape;
  const LayerShape home =
      shape_of_home(shape, HomeTokens::of(task.options.ranks.group, rank, shape.num_tokens));
  const StripCapacity all = strip_capacity(shape, task.options.strip_rule, task.options.tile_tokens, gpu);
  const StripCapacity own = strip_capacity(home, task.options.strip_rule, task.options.tile_tokens, gpu);
  const std::int64_t outputs = home.num_tokens * shape.hidden_size;
  return RouterBuffers::required_bytes(shape) +
         RankArena::of(shape, task.options.ranks.group, all.max_cover).bytes + all.bytes + own.bytes +
         home.num_tokens * (shape.grid_rows + shape.grid_cols) * kFloatBytes +
         staircase_sums_bytes(shape, sums_kind(task)) + shape.num_tokens * 4 + 2 * outputs +
         2 * CublasLt::workspace_bytes(home.num_tokens) +
         (shape.shared_size > 0 ? outputs * kFloatBytes + shared_mlp_workspace_bytes(home) : 0);
}

RankLayer::RankLayer(std::shared_ptr<DeviceContext> context, RankTask task,
                     std::shared_ptr<const RankWeightBuffers> weights, RankNetwork& network)
    : GraphedLayer(std::move(context), rank_stages(task.shape)),
      task_(std::move(task)),
      home_(HomeTokens::of(task_.options.ranks.group, network.rank(), task_.shape.num_tokens)),
      home_shape_(shape_of_home(task_.shape, home_)),
      experts_(std::move(weights)),
      router_(task_.shape, task_.router, stream()),
      weights_(experts_->weights()),
      network_(network),
      arena_(RankArena::of(task_.shape, task_.options.ranks.group,
                           max_strips_of_token(task_.shape, task_.options.strip_rule))),
      arena_memory_(arena_.bytes),
      counters_(1 + kRankPhases),
      blas_(CublasLt::workspace_bytes(home_shape_.num_tokens)),
      shared_blas_(CublasLt::workspace_bytes(home_shape_.num_tokens)),
      logits_(make_filled<float>(home_shape_.num_tokens * (task_.shape.grid_rows + task_.shape.grid_cols),
                                 stream())),
      bad_logit_(make_filled<std::int64_t>(1, stream())),
      home_strips_(home_shape_, task_.options.strip_rule, task_.options.tile_tokens),
      strips_(task_.shape, task_.options.strip_rule, task_.options.tile_tokens),
      owner_(upload_values(task_.strip_owner)),
      places_(upload_values(places_of_strips(task_))),
      exponents_(task_.shape.num_tokens),
      sums_(make_filled<std::byte>(staircase_sums_bytes(task_.shape, sums_kind(task_)), stream())),
      output_(make_filled<std::byte>(home_shape_.num_tokens * task_.shape.hidden_size * 2, stream())),
      push_stream_(high_priority_stream()) {
  router_.describe(weights_);
  if (task_.shape.shared_size > 0) {
    shared_result_ = make_filled<float>(home_shape_.num_tokens * task_.shape.hidden_size, stream());
    shared_scratch_ = make_filled<std::byte>(shared_mlp_workspace_bytes(home_shape_), stream());
  }
  MOESCOPE_CUDA_CHECK(
      cudaMemsetAsync(counters_.get(), 0, static_cast<std::size_t>(counters_.bytes()), stream()));
  if (home_.count > 0) {
    MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(own_rows(), task_.hidden_states.data(),
                                        static_cast<std::size_t>(task_.hidden_states.bytes()),
                                        cudaMemcpyHostToDevice, stream()));
  }
  stream_synchronize();
}

void RankLayer::connect() {
  arena_memory_.connect(network_);
  (void)network_.all_gather({});  // nobody writes before everybody has cleared
  capture();
}

double RankLayer::run_silent(std::uint32_t silent, L2State l2) {
  CudaGraphExec& graph = silent_layers_[silent];
  if (graph.get() == nullptr) {
    silent_ = silent;
    graph = capture_layer();
    silent_ = 0;
  }
  return run_layer(graph, l2);
}

std::byte* RankLayer::own_rows() const {
  return place(arena_.hidden_states + home_.first * task_.shape.hidden_size * 2);
}

RankLinks RankLayer::links() const {
  return {.group = task_.options.ranks.group,
          .rank = network_.rank(),
          .arenas = arena_memory_.all(),
          .own = arena_memory_.own(),
          .epoch = counters_.get(),
          .tickets = counters_.get() + 1,
          .watch = watch_.device(),
          .silent = silent_};
}

DeviceStrips RankLayer::strips() const {
  DeviceStrips strips = strips_.view();
  strips.row_log_probs = reinterpret_cast<float*>(place(arena_.row_log_probs));
  strips.col_log_probs = reinterpret_cast<float*>(place(arena_.col_log_probs));
  strips.threshold = reinterpret_cast<float*>(place(arena_.threshold));
  strips.tie_limit = reinterpret_cast<std::int32_t*>(place(arena_.tie_limit));
  strips.gate_shift = reinterpret_cast<float*>(place(arena_.gate_shift));
  strips.places = places_.get();
  return strips;
}

StaircaseOutput RankLayer::sums() const {
  return {.kind = sums_kind(task_),
          .sums = sums_.get(),
          .exponents = exponents_.get(),
          .log_scales = task_.shape.gate_mode == GateMode::kProbability ? strips().gate_shift : nullptr};
}

void RankLayer::project(cudaStream_t stream) {
  if (home_.count > 0) {
    launch_router_project(blas_, home_shape_, own_rows(), weights_, logits_.get(), stream);
  }
}

void RankLayer::select(cudaStream_t stream) {
  if (home_.count > 0) {
    launch_router_select_ranks(links(), task_.shape, arena_, home_, task_.options.strip_rule, logits_.get(),
                               home_strips_.view(), bad_logit_.get(), stream);
  }
}

void RankLayer::push_rows(cudaStream_t stream) {
  launch_push_rows(links(), task_.shape, arena_, home_, stream);
}

void RankLayer::take_strips(cudaStream_t stream) {
  launch_take_strips(links(), task_.shape, arena_, strips_.capacity().max_cover, owner_.get(), strips(),
                     home_strips_.view().scratch, stream);
}

void RankLayer::prepare_sums(cudaStream_t stream) {
  launch_staircase_prepare(task_.shape, place(arena_.hidden_states), experts_->bound(), strips(), sums(),
                           stream);
}

void RankLayer::enqueue_start() { launch_rank_start(links(), stream()); }

void RankLayer::enqueue(Stage stage, cudaStream_t stream) {
  switch (stage) {
    case Stage::kRouterProject:
      return project(stream);
    case Stage::kRouterSelect:
      return select(stream);
    case Stage::kTokenDispatch:
      push_rows(stream);
      launch_rank_wait(links(), RankPhase::kRows, stream);
      launch_rank_meet(links(), RankPhase::kSelection, stream);
      return take_strips(stream);
    case Stage::kSchedule:
      return launch_schedule_strips(task_.shape, task_.options.strip_rule, task_.options.tile_tokens,
                                    strips(), stream);
    case Stage::kExperts:
      prepare_sums(stream);
      return launch_experts_staircase(task_.shape, place(arena_.hidden_states), weights_, strips(), sums(),
                                      stream);
    case Stage::kSharedMlp:
      return share(0, home_.count, stream);
    case Stage::kTokenCombine:
      launch_push_sums(links(), task_.shape, arena_, sums(), stream);
      launch_rank_wait(links(), RankPhase::kSums, stream);
      return launch_add_sums(links(), task_.shape, arena_, home_, sums(), shared_result_.get(), output_.get(),
                             stream);
    default:
      throw InternalError(fmt::format("no stage {} on several GPUs", to_string(stage)));
  }
}

/// The pushing stream: X at once, then what the others' X is needed for. Whoever waits comes behind this
/// rank's own pushes: ranks that wait for each other have all said what they have.
void RankLayer::enqueue_overlapped() {
  const auto follow = [](cudaStream_t waits, const Event& event, cudaStream_t behind) {
    event.record(behind);
    MOESCOPE_CUDA_CHECK(cudaStreamWaitEvent(waits, event.get(), 0));
  };
  // Of the shared MLP five eighths run beside the selection, the rest while sums are on their way.
  const std::int64_t early = std::min(home_.count, round_up(home_.count * 5 / 8, kStripTileTokens));
  cudaStream_t const main = stream();
  cudaStream_t const side = push_stream_.get();
  follow(side, ready_, main);
  push_rows(side);
  project(main);
  fork();
  share(0, early, side_stream());
  select(main);
  launch_rank_wait(links(), RankPhase::kRows, side);
  prepare_sums(side);
  launch_rank_meet(links(), RankPhase::kSelection, main);
  take_strips(main);
  enqueue(Stage::kSchedule, main);
  follow(main, prepared_, side);
  launch_experts_staircase(task_.shape, place(arena_.hidden_states), weights_, strips(), sums(), main);
  fork();
  launch_push_sums(links(), task_.shape, arena_, sums(), main);
  launch_rank_wait(links(), RankPhase::kSums, main);
  share(early, home_.count - early, side_stream());
  join();
  launch_add_sums(links(), task_.shape, arena_, home_, sums(), shared_result_.get(), output_.get(), main);
}

void RankLayer::share(std::int64_t first, std::int64_t count, cudaStream_t stream) {
  if (!has(Stage::kSharedMlp) || count <= 0) {
    return;
  }
  LayerShape part = home_shape_;
  part.num_tokens = count;
  launch_shared_mlp(shared_blas_, part, own_rows() + first * part.hidden_size * 2, weights_,
                    shared_scratch_.get(), shared_result_.get() + first * part.hidden_size, stream);
}

std::int64_t RankLayer::missing_rank() {
  const std::int64_t ranks = network_.ranks();
  // By copies on another stream: this one is what waits.
  const auto flags = copy_to_host(reinterpret_cast<const std::uint32_t*>(place(arena_.flags)),
                                  kRankPhases * ranks, push_stream_.get());
  const std::uint32_t epoch = copy_to_host(counters_.get(), 1, push_stream_.get()).front();
  for (std::int64_t rank = 0; rank < ranks; ++rank) {
    for (std::int64_t phase = 0; phase < kRankPhases; ++phase) {
      if (static_cast<std::int32_t>(flags[static_cast<std::size_t>(phase * ranks + rank)] - epoch) < 0) {
        return rank;
      }
    }
  }
  return -1;
}

void RankLayer::wait_for_stream() {
  const auto end = std::chrono::steady_clock::now() + network_.timeout();
  try {
    for (std::int64_t looks = 0;; ++looks) {
      const cudaError_t state = cudaStreamQuery(stream());
      if (state == cudaSuccess) {
        return;
      }
      if (state != cudaErrorNotReady) {
        MOESCOPE_CUDA_CHECK(state);
      }
      (void)cudaGetLastError();
      constexpr std::int64_t kBusyLooks = 2000;  // some milliseconds: most runs end within
      if (looks < kBusyLooks) {
        continue;
      }
      network_.set_stage(watch_.waiting());
      network_.check();
      if (std::chrono::steady_clock::now() > end) {
        watch_.stop();
        stream_synchronize();
        const std::int64_t missing = missing_rank();
        throw RankFailure(missing < 0 ? network_.rank() : missing, network_.stage(),
                          fmt::format("did not come within {:g} s",
                                      static_cast<double>(network_.timeout().count()) / 1000));
      }
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  } catch (...) {
    watch_.stop();
    stream_synchronize();
    throw;
  }
}

void RankLayer::check_logits() {
  if (home_.count > 0 && copy_to_host(bad_logit_.get(), 1, stream()).front() >= 0) {
    MOESCOPE_CUDA_CHECK(cudaMemsetAsync(bad_logit_.get(), 0xff, sizeof(std::int64_t), stream()));
    throw_bad_logit(download_logits(home_shape_, logits_.get(), stream()));
  }
}

HostTensor RankLayer::output() {
  return download(task_.shape.dtype, home_.count, task_.shape.hidden_size, output_.get(), stream());
}

Routing RankLayer::routing() {
  if (home_.count == 0) {
    Routing none;
    none.grid_rows = task_.shape.grid_rows;
    none.grid_cols = task_.shape.grid_cols;
    none.token_offsets = {0};
    return none;
  }
  launch_router_select_strips(home_shape_, task_.options.strip_rule, logits_.get(), home_strips_.view(),
                              bad_logit_.get(), stream());
  launch_schedule_strips(home_shape_, task_.options.strip_rule, task_.options.tile_tokens,
                         home_strips_.view(), stream());
  return routing_of(home_shape_, home_strips_.download(stream()));
}

std::int64_t RankLayer::dispatch_bytes_per_token() const {
  const LayerShape& shape = task_.shape;
  return shape.hidden_size * 2 + (shape.grid_rows + shape.grid_cols) * kFloatBytes + 4 * 4 +
         strips_.capacity().max_cover * 4;
}

std::vector<StageMemory> RankLayer::memory() const {
  const LayerShape& shape = task_.shape;
  const std::int64_t sums = sums_.bytes() + exponents_.bytes();
  std::vector<StageMemory> memory = {
      {Stage::kRouterProject, logits_.bytes() + CublasLt::workspace_bytes(home_shape_.num_tokens)},
      {Stage::kRouterSelect, logits_.bytes() + home_strips_.bytes()},
      {Stage::kTokenDispatch, arena_.sums - arena_.row_log_probs + strips_.bytes()},
      {Stage::kSchedule, strips_.bytes()},
      {Stage::kExperts, sums + strips_.bytes()}};
  if (shape.shared_size > 0) {
    memory.push_back({Stage::kSharedMlp, shared_result_.bytes() + shared_scratch_.bytes() +
                                             CublasLt::workspace_bytes(home_shape_.num_tokens)});
  }
  memory.push_back({Stage::kTokenCombine, sums + arena_.bytes - arena_.sums});
  memory.push_back({Stage::kLayer, required_bytes(task_, network_.rank(), context_->info) -
                                       home_shape_.num_tokens * shape.hidden_size * 2});
  return memory;
}

std::string RankLayer::kernels(Stage stage) const {
  switch (stage) {
    case Stage::kRouterSelect:
      return "router_select_ranks";
    case Stage::kTokenDispatch:
      return "push_rows + rank_meet + take_strips";
    case Stage::kSchedule:
      return "schedule_strips";
    case Stage::kExperts:
      return std::string("staircase_prepare + experts_staircase<") +
             (sums_kind(task_) == StaircaseSums::kFp16 ? "fp16" : "fixed-point") + " sums>";
    case Stage::kTokenCombine:
      return "push_sums + rank_meet + add_sums";
    case Stage::kLayer: {
      std::string all;
      for (const Stage own : stages_) {
        all += (all.empty() ? "" : " + ") + kernels(own);
      }
      return all;
    }
    default:
      return std::string(to_string(stage));
  }
}

}  // namespace moescope::cuda
