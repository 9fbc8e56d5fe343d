#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/contract/strips_backward.hpp"
#include "kernels/runtime/cuda_raii.hpp"
#include "tests/support/expert_case.hpp"

/// The backward's launchers on strips with memory of their own, in the order in which a layer runs them.
namespace moescope::test {

template <class T>
std::vector<T> from_device(const cuda::DeviceBuffer<std::byte>& buffer) {
  std::vector<T> values(static_cast<std::size_t>(buffer.bytes()) / sizeof(T));
  MOESCOPE_CUDA_CHECK(
      cudaMemcpy(values.data(), buffer.get(), values.size() * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

/// Parameters' gradients as floats.
inline std::vector<float> floats_from_device(const cuda::DeviceBuffer<std::byte>& buffer, Dtype dtype) {
  if (dtype == Dtype::kF32) return from_device<float>(buffer);
  std::vector<float> values;
  for (const Bf16 value : from_device<Bf16>(buffer)) values.push_back(to_float(value));
  return values;
}

/// What a run reads on the device.
struct StripsBatch {
  LayerShape shape;
  StripRule rule = StripRule::kMinimalCover;
  const void* x = nullptr;
  const void* dy = nullptr;
  cuda::DeviceWeights weights;
  cuda::DeviceStrips strips;
};

class StripsGradients {
 public:
  /// All memory starts as NaN, so that what nobody wrote shows where it is read.
  StripsGradients(const StripsBatch& batch, std::int64_t entries, std::int64_t tiles,
                  cuda::StaircaseSums sums, Dtype dtype)
      : batch_(batch), layout_(cuda::strips_pairs_layout(batch.shape, entries, tiles)), dtype_(dtype) {
    const LayerShape& shape = batch.shape;
    const std::int64_t covers = shape.num_tokens * max_strips_of_token(shape, batch.rule);
    const std::int64_t weights = shape.num_experts() * shape.hidden_size * dtype_bytes(dtype);
    const auto make = [&](std::int64_t bytes) {
      buffers_.emplace_back(std::max(bytes, std::int64_t{16}));
      return buffers_.back().get();
    };
    order_.strip_tokens = reinterpret_cast<std::int32_t*>(make(layout_.entries * 4));
    order_.entries = reinterpret_cast<std::int32_t*>(make(covers * 4));
    pairs_.layout = layout_;
    pairs_.z = make(layout_.z_bytes);
    pairs_.p = make(layout_.row_bytes);
    pairs_.q = make(layout_.row_bytes);
    pairs_.h = make(layout_.row_bytes);
    pairs_.h_sums = reinterpret_cast<float*>(make(layout_.sum_bytes));
    pairs_.gate_sums = reinterpret_cast<float*>(make(layout_.sum_bytes));
    dx_sums_.kind = sums;
    dx_sums_.sums = make(cuda::staircase_sums_bytes(shape, sums));
    dx_sums_.exponents = reinterpret_cast<std::int32_t*>(make(shape.num_tokens * 4));
    bound_ = reinterpret_cast<float*>(make(4));
    workspace_ = make(cuda::strips_router_select_backward_workspace_bytes(shape));
    dx_ = cuda::DeviceBuffer<std::byte>(shape.num_tokens * shape.hidden_size * 4);
    logits_ = cuda::DeviceBuffer<std::byte>(shape.num_tokens * (shape.grid_rows + shape.grid_cols) * 4);
    w_in_ = cuda::DeviceBuffer<std::byte>(weights);
    w_out_ = cuda::DeviceBuffer<std::byte>(weights);
    for (auto& buffer : buffers_) poison(buffer);
    for (auto* buffer : {&dx_, &logits_, &w_in_, &w_out_}) poison(*buffer);
    cuda::DeviceWeights exchanged = batch.weights;
    std::swap(exchanged.w_in, exchanged.w_out);
    cuda::launch_expert_bound(shape, exchanged, bound_, nullptr);
  }

  void order() const { cuda::launch_strips_order(batch_.shape, batch_.rule, batch_.strips, order_, nullptr); }
  void prepare() const {
    cuda::launch_strips_backward_prepare(batch_.shape, batch_.dy, bound_, strips(), pairs_, dx_sums_,
                                         nullptr);
  }
  void scores() const {
    cuda::launch_strips_scores(batch_.shape, batch_.x, batch_.weights, strips(), pairs_, nullptr);
  }
  void dgrad() const {
    cuda::launch_strips_dgrad(batch_.shape, batch_.dy, batch_.weights, strips(), pairs_, dx_sums_, nullptr);
  }
  void finish(bool adds = false) const {
    cuda::launch_strips_finish(batch_.shape, dx_sums_, adds, reinterpret_cast<float*>(dx_.get()), nullptr);
  }
  void select_backward() const {
    cuda::launch_strips_router_select_backward(batch_.shape, batch_.rule, strips(), order_, pairs_,
                                               reinterpret_cast<float*>(logits_.get()), workspace_, nullptr);
  }
  void wgrad(bool adds = false) const {
    cuda::launch_strips_wgrad(batch_.shape, batch_.rule, batch_.x, batch_.dy, strips(), pairs_,
                              {.dtype = dtype_, .w_in = w_in_.get(), .w_out = w_out_.get(), .adds = adds},
                              nullptr);
  }
  /// The forward's sums in fixed point, by the kernel that keeps z or the one that does not.
  std::vector<std::int32_t> forward(bool keeps_z) const {
    const LayerShape& shape = batch_.shape;
    const cuda::DeviceBuffer<std::byte> sums(shape.num_tokens * shape.hidden_size * 4);
    const cuda::DeviceBuffer<std::int32_t> exponents(shape.num_tokens);
    const cuda::DeviceBuffer<float> bound(1);
    const cuda::StaircaseOutput output{
        .kind = cuda::StaircaseSums::kFixedPoint, .sums = sums.get(), .exponents = exponents.get()};
    cuda::launch_expert_bound(shape, batch_.weights, bound.get(), nullptr);
    cuda::launch_staircase_prepare(shape, batch_.x, bound.get(), strips(), output, nullptr);
    if (keeps_z) {
      cuda::launch_strips_forward(shape, batch_.x, batch_.weights, strips(), pairs_, output, nullptr);
    } else {
      cuda::launch_experts_staircase(shape, batch_.x, batch_.weights, strips(), output, nullptr);
    }
    return from_device<std::int32_t>(sums);
  }
  void run() const {
    order();
    prepare();
    scores();
    dgrad();
    finish();
    select_backward();
    wgrad();
  }

  void forget_scores() const {
    MOESCOPE_CUDA_CHECK(cudaMemset(pairs_.z, 0xff, static_cast<std::size_t>(layout_.z_bytes)));
  }

  // These wait for the device.
  std::vector<float> dx() const { return from_device<float>(dx_); }
  std::vector<float> logits() const { return from_device<float>(logits_); }
  std::vector<float> w_in() const { return floats_from_device(w_in_, dtype_); }
  std::vector<float> w_out() const { return floats_from_device(w_out_, dtype_); }
  /// One expert's row of dW, or of dV where `is_out`.
  std::vector<float> expert_row(std::int32_t expert, bool is_out) const {
    const std::int64_t bytes = batch_.shape.hidden_size * dtype_bytes(dtype_);
    const cuda::DeviceBuffer<std::byte> row(bytes);
    MOESCOPE_CUDA_CHECK(cudaMemcpy(row.get(), (is_out ? w_out_ : w_in_).get() + expert * bytes,
                                   static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice));
    return floats_from_device(row, dtype_);
  }
  std::vector<std::int32_t> ordered_tokens() const { return from_device<std::int32_t>(buffers_[0]); }
  std::vector<std::int32_t> ordered_entries() const { return from_device<std::int32_t>(buffers_[1]); }
  const cuda::StripsPairsLayout& layout() const { return layout_; }
  const cuda::StripsPairs& pairs() const { return pairs_; }
  cuda::DeviceStrips strips() const { return order_.apply(batch_.strips); }

 private:
  static void poison(const cuda::DeviceBuffer<std::byte>& buffer) {
    MOESCOPE_CUDA_CHECK(cudaMemset(buffer.get(), 0xff, static_cast<std::size_t>(buffer.bytes())));
  }

  StripsBatch batch_;
  cuda::StripsPairsLayout layout_;
  Dtype dtype_;
  std::vector<cuda::DeviceBuffer<std::byte>> buffers_;
  cuda::StripsOrder order_;
  cuda::StripsPairs pairs_;
  cuda::StaircaseOutput dx_sums_;
  float* bound_ = nullptr;
  void* workspace_ = nullptr;
  cuda::DeviceBuffer<std::byte> dx_;
  cuda::DeviceBuffer<std::byte> logits_;
  cuda::DeviceBuffer<std::byte> w_in_;
  cuda::DeviceBuffer<std::byte> w_out_;
};

}  // namespace moescope::test
