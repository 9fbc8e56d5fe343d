#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/systems/system.hpp"
#include "kernels/buffers/layer_buffers.hpp"
#include "kernels/contract/system_launch.hpp"

/// Owners of a baseline layer's data on the device.
namespace moescope::cuda {

/// The selection among product keys as launch_router_select takes it: a row per query, grid n x n, K / heads.
LayerShape query_shape(const SystemShape& shape);

/// All weights of one baseline; what it does not have is null. The constructor blocks until everything is
/// there.
class SystemBuffers {
 public:
  static std::int64_t required_bytes(const SystemShape& shape, bool has_norm);
  SystemBuffers(const SystemShape& shape, const SystemWeights& weights, cudaStream_t stream);

  const void* router() const { return router_.get(); }    ///< [N, d]
  const void* gate_up() const { return gate_up_.get(); }  ///< [N, 2 f, d]
  const void* down() const { return down_.get(); }        ///< [N, d, f]
  ProductKeys keys() const { return {queries_.get(), keys_.get(), norm_.get(), norm_bias()}; }
  /// w_in, w_out and the dense branch.
  DeviceWeights describe() const;

 private:
  const float* norm_bias() const {
    return norm_.get() == nullptr ? nullptr : norm_.get() + norm_.count() / 2;
  }

  Bytes router_;
  Bytes gate_up_;
  Bytes down_;
  Bytes queries_;
  Bytes keys_;
  DeviceBuffer<float> norm_;  ///< weight, then bias
  Bytes w_in_;
  Bytes w_out_;
  Bytes shared_gate_up_;
  Bytes shared_down_;
};

/// The tiles of one expert that has all rows: of the dense branch's grouped product. Blocks until copied.
class DenseTiles {
 public:
  DenseTiles() = default;
  DenseTiles(std::int64_t rows, cudaStream_t stream);
  const GroupedTile* tiles() const { return tiles_.get(); }
  const std::int32_t* num_tiles() const { return num_tiles_.get(); }

 private:
  DeviceBuffer<GroupedTile> tiles_;
  DeviceBuffer<std::int32_t> num_tiles_;
};

}  // namespace moescope::cuda
