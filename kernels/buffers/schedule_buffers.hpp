#pragma once

#include <cstdint>

#include "core/layer/layer_shape.hpp"
#include "core/schedule/schedule.hpp"
#include "kernels/contract/launch.hpp"
#include "kernels/runtime/cuda_raii.hpp"

namespace moescope::cuda {

/// Owner of the device arrays of one schedule (not of its build workspace).
class ScheduleBuffers {
 public:
  ScheduleBuffers() = default;
  /// Allocates for schedule_capacity(shape, options); contents are uninitialised until launch_schedule().
  ScheduleBuffers(const LayerShape& shape, const ScheduleOptions& options);

  DeviceSchedule view() const;
  /// Bytes held; equals ScheduleCapacity::array_bytes.
  std::int64_t bytes() const;
  /// The schedule in core's form, as core's builder would make it. Blocks until `stream` is done.
  Schedule download(cudaStream_t stream) const;

 private:
  LayerShape shape_;
  ScheduleOptions options_;
  ScheduleCapacity capacity_;
  DeviceBuffer<std::int64_t> item_entry_offsets_;
  DeviceBuffer<std::int64_t> item_tile_offsets_;
  DeviceBuffer<std::int32_t> entry_tokens_;
  DeviceBuffer<std::int32_t> entry_pair_offsets_;
  DeviceBuffer<std::int32_t> sorted_pair_ids_;
  DeviceBuffer<std::int32_t> group_experts_;
  DeviceBuffer<std::int64_t> counts_;
};

}  // namespace moescope::cuda
