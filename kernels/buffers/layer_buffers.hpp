#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/layer/layer_inputs.hpp"
#include "core/layer/routing.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cuda_raii.hpp"

/// Owners of a layer's data on the device and the copies from and to host memory.
namespace moescope::cuda {

using Bytes = DeviceBuffer<std::byte>;

/// A copy on the device. The host tensor must stay until `stream` has passed the copy.
Bytes upload(const HostTensor& tensor, cudaStream_t stream);
/// Two matrices of equal row length, one under the other, on the device; the host tensors must stay as above.
Bytes stack(const HostTensor& upper, const HostTensor& lower, cudaStream_t stream);
/// A copy of rows x cols elements on the host; blocks until `stream` is done.
HostTensor download(Dtype dtype, std::int64_t rows, std::int64_t cols, const void* device,
                    cudaStream_t stream);

/// Memory filled with NaN, so that a place that nothing wrote shows. It also tells compute-sanitizer's
/// initcheck that the memory is written: it does not see the bulk stores of cuBLASLt's kernels.
template <class T>
DeviceBuffer<T> make_filled(std::int64_t count, cudaStream_t stream) {
  DeviceBuffer<T> buffer(count);
  if (count > 0) {
    MOESCOPE_CUDA_CHECK(
        cudaMemsetAsync(buffer.get(), 0xff, static_cast<std::size_t>(buffer.bytes()), stream));
  }
  return buffer;
}

/// W, V and the shared MLP. Blocks until everything is there.
class ExpertBuffers {
 public:
  static std::int64_t required_bytes(const LayerShape& shape);
  ExpertBuffers(const LayerShape& shape, const ExpertWeights& experts, cudaStream_t stream);
  /// Fills in the fields of the experts and the shared MLP.
  void describe(DeviceWeights& weights) const;
  /// Bound on an expert's output that the staircase kernel scales its sums by (launch_expert_bound); null
  /// with fp32 storage.
  const float* bound() const { return bound_.get(); }

 private:
  Bytes w_in_;
  Bytes w_out_;
  Bytes shared_gate_up_;
  Bytes shared_down_;
  DeviceBuffer<float> bound_;
};

/// Router weights, rows and columns in one matrix, and bias (zeros when there is none). Blocks until copied.
class RouterBuffers {
 public:
  static std::int64_t required_bytes(const LayerShape& shape);
  RouterBuffers() = default;
  RouterBuffers(const LayerShape& shape, const RouterWeights& router, cudaStream_t stream);
  void describe(DeviceWeights& weights) const;

 private:
  Bytes router_;
  DeviceBuffer<float> bias_;
};

/// Expert ids and gates, K per token.
class RoutingBuffers {
 public:
  static std::int64_t required_bytes(const LayerShape& shape);
  /// Uninitialised, for the router to fill.
  explicit RoutingBuffers(const LayerShape& shape);
  /// A copy of `routing`, which fits `shape`; blocks until it is there.
  RoutingBuffers(const LayerShape& shape, const Routing& routing, cudaStream_t stream);
  DeviceRouting view() const { return {expert_ids_.get(), gates_.get()}; }
  /// A copy of `routing`, which fits the shape; blocks until it is there.
  void upload(const Routing& routing, cudaStream_t stream);
  /// Blocks until `stream` is done.
  Routing download(const LayerShape& shape, cudaStream_t stream) const;

 private:
  DeviceBuffer<std::int32_t> expert_ids_;
  DeviceBuffer<float> gates_;
};

/// Throws InvalidArgument for what the kernels cannot do: hidden_size not a multiple of 8 (they load 16 bytes
/// at a time), and L*K >= 2^31 under a schedule with 32-bit pair ids.
void require_gpu_shape(const LayerShape& shape, ScheduleKind kind);
/// The shape with top_k as `routing` has it. Throws InvalidArgument when tokens differ in their number of
/// pairs: the kernels find a token's pairs at token * K.
LayerShape shape_of(const LayerShape& shape, const Routing& routing);
/// Throws InvalidArgument unless `routing` is one of `shape`, K included.
void require_routing_of(const LayerShape& shape, const Routing& routing);
/// The InvalidArgument of the reference for the first logit that is not finite (rows before columns).
/// Throws InternalError when all are finite.
[[noreturn]] void throw_bad_logit(const RouterLogits& logits);
/// Device logits [L, Nr+Nc] in the form of the interface; blocks until `stream` is done.
RouterLogits download_logits(const LayerShape& shape, const float* logits, cudaStream_t stream);
/// The inverse; blocks until they are there. Throws InvalidArgument where they do not fit `shape`.
void upload_logits(const LayerShape& shape, const RouterLogits& logits, float* device, cudaStream_t stream);

}  // namespace moescope::cuda
