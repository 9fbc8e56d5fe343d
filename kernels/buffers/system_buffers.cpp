#include "kernels/buffers/system_buffers.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace moescope::cuda {
namespace {

/// Row r of the result is row source(r) of `tensor`.
template <class Source>
HostTensor permute_rows(const HostTensor& tensor, Source source) {
  HostTensor result(tensor.dtype(), tensor.rows(), tensor.cols());
  const auto row_bytes = static_cast<std::size_t>(tensor.cols() * dtype_bytes(tensor.dtype()));
  for (std::int64_t row = 0; row < tensor.rows(); ++row) {
    std::memcpy(result.data() + static_cast<std::size_t>(row) * row_bytes,
                tensor.data() + static_cast<std::size_t>(source(row)) * row_bytes, row_bytes);
  }
  return result;
}

/// Half outermost, then head, to head outermost, then half.
HostTensor by_head(const HostTensor& queries, std::int64_t heads, std::int64_t key_size) {
  return permute_rows(queries, [=](std::int64_t row) {
    const std::int64_t head = row / (2 * key_size);
    const std::int64_t half = row / key_size % 2;
    return (half * heads + head) * key_size + row % key_size;
  });
}

/// Head outermost, then key, then half, to head, half, key.
HostTensor by_half(const HostTensor& keys, std::int64_t num_keys) {
  return permute_rows(keys, [=](std::int64_t row) {
    const std::int64_t head = row / (2 * num_keys);
    const std::int64_t half = row / num_keys % 2;
    return (head * num_keys + row % num_keys) * 2 + half;
  });
}

}  // namespace

LayerShape query_shape(const SystemShape& shape) {
  LayerShape queries = shape.row_shape();
  queries.num_tokens = shape.num_queries();
  queries.top_k = shape.top_k_per_query();
  return queries;
}

std::int64_t SystemBuffers::required_bytes(const SystemShape& shape, bool has_norm) {
  // weight_bytes() counts pkm's norm, which golden files and own weights may lack.
  const std::int64_t norm = 2 * shape.key_size * dtype_bytes(Dtype::kF32);
  return shape.weight_bytes() - (shape.system == System::kPkm && !has_norm ? norm : 0);
}

SystemBuffers::SystemBuffers(const SystemShape& shape, const SystemWeights& weights, cudaStream_t stream) {
  const auto copy = [&](const HostTensor& tensor) { return upload(tensor, stream); };
  if (shape.has_ffn_experts()) {
    router_ = copy(weights.router);
    gate_up_ = copy(weights.experts->gate_up);
    down_ = copy(weights.experts->down);
  }
  if (shape.has_product_keys()) {
    const HostTensor queries = by_head(weights.keys->queries, shape.heads, shape.key_size);
    const HostTensor keys = by_half(weights.keys->keys, shape.num_keys());
    queries_ = copy(queries);
    keys_ = copy(keys);
    if (!weights.keys->norm_weight.empty()) {
      std::vector<float> norm = weights.keys->norm_weight;
      norm.insert(norm.end(), weights.keys->norm_bias.begin(), weights.keys->norm_bias.end());
      norm_ = DeviceBuffer<float>(std::ssize(norm));
      MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(norm_.get(), norm.data(), static_cast<std::size_t>(norm_.bytes()),
                                          cudaMemcpyHostToDevice, stream));
      MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
    }
    w_out_ = copy(weights.w_out);
    if (shape.system == System::kPeer) {
      w_in_ = copy(weights.w_in);
    }
    MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));  // `queries` and `keys` end here
  }
  if (shape.shared_size > 0) {
    shared_gate_up_ = stack(weights.shared->gate, weights.shared->up, stream);
    shared_down_ = copy(weights.shared->down);
  }
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

DeviceWeights SystemBuffers::describe() const {
  DeviceWeights weights;
  weights.w_in = w_in_.get();
  weights.w_out = w_out_.get();
  weights.shared_gate_up = shared_gate_up_.get();
  weights.shared_down = shared_down_.get();
  return weights;
}

DenseTiles::DenseTiles(std::int64_t rows, cudaStream_t stream)
    : tiles_(max_grouped_tiles(rows, 1)), num_tiles_(1) {
  std::vector<GroupedTile> tiles;
  for (std::int64_t row = 0; row < rows; row += kGroupedTileRows) {
    tiles.push_back({.first_row = static_cast<std::int32_t>(row),
                     .count = static_cast<std::int32_t>(std::min(rows - row, kGroupedTileRows))});
  }
  const auto count = static_cast<std::int32_t>(tiles.size());
  MOESCOPE_CUDA_CHECK(cudaMemcpyAsync(tiles_.get(), tiles.data(), tiles.size() * sizeof(GroupedTile),
                                      cudaMemcpyHostToDevice, stream));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpyAsync(num_tiles_.get(), &count, sizeof count, cudaMemcpyHostToDevice, stream));
  MOESCOPE_CUDA_CHECK(cudaStreamSynchronize(stream));
}

}  // namespace moescope::cuda
