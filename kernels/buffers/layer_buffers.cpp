#include "kernels/buffers/layer_buffers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace moescope::cuda {
namespace {

void copy_in(void* device, const void* host, std::int64_t bytes, cudaStream_t stream) {
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, stream));
}

void copy_out(void* host, const void* device, std::int64_t bytes, cudaStream_t stream) {
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, stream));
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

void throw_unless_finite(const HostTensor& logits, std::string_view name) {
  const auto view = logits.f32();
  for (std::int64_t token = 0; token < view.rows; ++token) {
    const auto row = view.row_span(token);
    const auto bad =
        std::find_if_not(row.begin(), row.end(), [](float value) { return std::isfinite(value); });
    if (bad != row.end()) {
      throw InvalidArgument(fmt::format("{}[{}, {}]", name, token, bad - row.begin()),
                            fmt::format("{}", *bad), "must be finite");
    }
  }
}

}  // namespace

Bytes upload(const HostTensor& tensor, cudaStream_t stream) {
  Bytes device(tensor.bytes());
  copy_in(device.get(), tensor.data(), tensor.bytes(), stream);
  return device;
}

Bytes stack(const HostTensor& upper, const HostTensor& lower, cudaStream_t stream) {
  Bytes both(upper.bytes() + lower.bytes());
  copy_in(both.get(), upper.data(), upper.bytes(), stream);
  copy_in(both.get() + upper.bytes(), lower.data(), lower.bytes(), stream);
  return both;
}

HostTensor download(Dtype dtype, std::int64_t rows, std::int64_t cols, const void* device,
                    cudaStream_t stream) {
  HostTensor host(dtype, rows, cols);
  copy_out(host.data(), device, host.bytes(), stream);
  return host;
}

std::int64_t ExpertBuffers::required_bytes(const LayerShape& shape) {
  return (2 * shape.num_experts() + 3 * shape.shared_size) * shape.hidden_size * dtype_bytes(shape.dtype);
}

ExpertBuffers::ExpertBuffers(const LayerShape& shape, const ExpertWeights& experts, cudaStream_t stream)
    : w_in_(upload(experts.w_in, stream)), w_out_(upload(experts.w_out, stream)) {
  if (shape.shared_size > 0) {
    shared_gate_up_ = stack(experts.shared->gate, experts.shared->up, stream);
    shared_down_ = upload(experts.shared->down, stream);
  }
  if (shape.dtype == Dtype::kBF16) {
    bound_ = DeviceBuffer<float>(1);
    DeviceWeights weights;
    describe(weights);
    launch_expert_bound(shape, weights, bound_.get(), stream);
  }
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

void ExpertBuffers::describe(DeviceWeights& weights) const {
  weights.w_in = w_in_.get();
  weights.w_out = w_out_.get();
  weights.shared_gate_up = shared_gate_up_.get();
  weights.shared_down = shared_down_.get();
}

std::int64_t RouterBuffers::required_bytes(const LayerShape& shape) {
  return (shape.grid_rows + shape.grid_cols) *
         (shape.hidden_size * dtype_bytes(shape.dtype) + static_cast<std::int64_t>(sizeof(float)));
}

RouterBuffers::RouterBuffers(const LayerShape& shape, const RouterWeights& router, cudaStream_t stream)
    : router_(stack(router.row, router.col, stream)), bias_(shape.grid_rows + shape.grid_cols) {
  std::vector<float> bias(static_cast<std::size_t>(bias_.count()), 0.0F);
  std::copy(router.row_bias.begin(), router.row_bias.end(), bias.begin());
  std::copy(router.col_bias.begin(), router.col_bias.end(), bias.begin() + shape.grid_rows);
  copy_in(bias_.get(), bias.data(), bias_.bytes(), stream);
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

void RouterBuffers::describe(DeviceWeights& weights) const {
  weights.router = router_.get();
  weights.router_bias = bias_.get();
}

std::int64_t RoutingBuffers::required_bytes(const LayerShape& shape) {
  return shape.num_pairs() * static_cast<std::int64_t>(sizeof(std::int32_t) + sizeof(float));
}

RoutingBuffers::RoutingBuffers(const LayerShape& shape)
    : expert_ids_(shape.num_pairs()), gates_(shape.num_pairs()) {}

RoutingBuffers::RoutingBuffers(const LayerShape& shape, const Routing& routing, cudaStream_t stream)
    : RoutingBuffers(shape) {
  upload(routing, stream);
}

void RoutingBuffers::upload(const Routing& routing, cudaStream_t stream) {
  copy_in(expert_ids_.get(), routing.expert_ids.data(), expert_ids_.bytes(), stream);
  copy_in(gates_.get(), routing.gates.data(), gates_.bytes(), stream);
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

Routing RoutingBuffers::download(const LayerShape& shape, cudaStream_t stream) const {
  Routing routing;
  routing.num_tokens = shape.num_tokens;
  routing.grid_rows = shape.grid_rows;
  routing.grid_cols = shape.grid_cols;
  routing.token_offsets.resize(static_cast<std::size_t>(shape.num_tokens) + 1);
  for (std::size_t token = 0; token < routing.token_offsets.size(); ++token) {
    routing.token_offsets[token] = static_cast<std::int64_t>(token) * shape.top_k;
  }
  routing.expert_ids.resize(static_cast<std::size_t>(shape.num_pairs()));
  routing.gates.resize(routing.expert_ids.size());
  copy_out(routing.expert_ids.data(), expert_ids_.get(), expert_ids_.bytes(), stream);
  copy_out(routing.gates.data(), gates_.get(), gates_.bytes(), stream);
  return routing;
}

void require_gpu_shape(const LayerShape& shape, ScheduleKind kind) {
  shape.validate();
  constexpr std::int64_t kHiddenMultiple = 8;
  if (shape.hidden_size % kHiddenMultiple != 0) {
    throw InvalidArgument("hidden_size", std::to_string(shape.hidden_size),
                          "must be a multiple of 8 on the GPU");
  }
  const bool narrow = kind == ScheduleKind::kExpertCentric || kind == ScheduleKind::kStaircase ||
                      kind == ScheduleKind::kSparseLibrary;
  if (narrow && shape.num_pairs() > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("num_tokens * top_k", std::to_string(shape.num_pairs()),
                          fmt::format("must be below 2^31 for schedule {} on the GPU", to_string(kind)));
  }
}

LayerShape shape_of(const LayerShape& shape, const Routing& routing) {
  routing.validate();
  LayerShape result = shape;
  result.num_tokens = routing.num_tokens;
  result.grid_rows = routing.grid_rows;
  result.grid_cols = routing.grid_cols;
  result.top_k = std::ssize(routing.ids_of(0));
  for (std::int64_t token = 1; token < routing.num_tokens; ++token) {
    if (std::ssize(routing.ids_of(token)) != result.top_k) {
      throw InvalidArgument(
          fmt::format("routing: pairs of token {}", token), std::to_string(routing.ids_of(token).size()),
          fmt::format("must be {} as for token 0: the GPU path needs the same K for all", result.top_k));
    }
  }
  return result;
}

void require_routing_of(const LayerShape& shape, const Routing& routing) {
  const LayerShape own = shape_of(shape, routing);
  if (own.num_tokens != shape.num_tokens || own.grid_rows != shape.grid_rows ||
      own.grid_cols != shape.grid_cols || own.top_k != shape.top_k) {
    throw InvalidArgument("routing", own.label(), fmt::format("must fit the layer {}", shape.label()));
  }
}

void throw_bad_logit(const RouterLogits& logits) {
  throw_unless_finite(logits.row, "row_logits");
  throw_unless_finite(logits.col, "col_logits");
  throw InternalError("router_select reported a logit that is not finite, but all are");
}

RouterLogits download_logits(const LayerShape& shape, const float* logits, cudaStream_t stream) {
  RouterLogits result{HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_rows),
                      HostTensor(Dtype::kF32, shape.num_tokens, shape.grid_cols)};
  const std::int64_t width = shape.grid_rows + shape.grid_cols;
  const auto copy = [&](HostTensor& side, std::int64_t first) {
    const auto row_bytes = static_cast<std::size_t>(side.cols()) * sizeof(float);
    MOESCOPE_CUDA_CHECK(cudaMemcpy2DAsync(
        side.data(), row_bytes, logits + first, static_cast<std::size_t>(width) * sizeof(float), row_bytes,
        static_cast<std::size_t>(side.rows()), cudaMemcpyDeviceToHost, stream));
  };
  copy(result.row, 0);
  copy(result.col, shape.grid_rows);
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
  return result;
}

void upload_logits(const LayerShape& shape, const RouterLogits& logits, float* device, cudaStream_t stream) {
  const std::int64_t width = shape.grid_rows + shape.grid_cols;
  const auto copy = [&](const HostTensor& side, std::string_view name, std::int64_t extent,
                        std::int64_t first) {
    if (side.dtype() != Dtype::kF32 || side.rows() != shape.num_tokens || side.cols() != extent) {
      throw InvalidArgument(name,
                            fmt::format("[{}, {}] {}", side.rows(), side.cols(), to_string(side.dtype())),
                            fmt::format("must be [{}, {}] fp32", shape.num_tokens, extent));
    }
    const auto row_bytes = static_cast<std::size_t>(extent) * sizeof(float);
    MOESCOPE_CUDA_CHECK(cudaMemcpy2DAsync(
        device + first, static_cast<std::size_t>(width) * sizeof(float), side.data(), row_bytes, row_bytes,
        static_cast<std::size_t>(shape.num_tokens), cudaMemcpyHostToDevice, stream));
  };
  copy(logits.row, "row_logits", shape.grid_rows, 0);
  copy(logits.col, "col_logits", shape.grid_cols, shape.grid_rows);
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

}  // namespace moescope::cuda
