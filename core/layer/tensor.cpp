#include "core/layer/tensor.hpp"

#include <fmt/format.h>

#include <cstring>
#include <limits>

#include "core/base/error.hpp"
#include "core/base/host_memory.hpp"

namespace moescope {
namespace {

constexpr std::align_val_t kAlignment{64};  // one cache line, one AVX-512 register
// Below this the kernel's own refusal is soon enough; asking it how much is free costs a file read.
constexpr std::int64_t kAskFirstBytes = std::int64_t{64} << 20;

std::byte* allocate(std::int64_t bytes) {
  if (bytes == 0) {
    return nullptr;
  }
  const auto need = static_cast<std::uint64_t>(bytes);
  if (bytes >= kAskFirstBytes) {
    require_host_memory("host tensor", static_cast<double>(need));
  }
  auto* memory = static_cast<std::byte*>(::operator new[](need, kAlignment, std::nothrow));
  if (memory == nullptr) {
    throw OutOfMemory("host tensor", need, available_host_memory_bytes());
  }
  return memory;
}

template <class T>
MatrixView<T> view(Dtype have, Dtype want, std::byte* data, std::int64_t rows, std::int64_t cols) {
  if (have != want) {
    throw InternalError(fmt::format("{} view of a {} tensor", to_string(want), to_string(have)));
  }
  return {reinterpret_cast<T*>(data), rows, cols};
}

}  // namespace

HostTensor::HostTensor(Dtype dtype, std::int64_t rows, std::int64_t cols)
    : dtype_(dtype), rows_(rows), cols_(cols) {
  if (rows < 0) {
    throw InvalidArgument("rows", fmt::to_string(rows), "a tensor's extent must not be negative");
  }
  if (cols < 0) {
    throw InvalidArgument("cols", fmt::to_string(cols), "a tensor's extent must not be negative");
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(rows, cols, &bytes) ||
      __builtin_mul_overflow(bytes, dtype_bytes(dtype), &bytes)) {
    throw InvalidArgument("rows x cols", fmt::format("{} x {}", rows, cols),
                          "the tensor's size overflows 64 bits");
  }
  data_.reset(allocate(bytes));
}

HostTensor HostTensor::zeros(Dtype dtype, std::int64_t rows, std::int64_t cols) {
  HostTensor result(dtype, rows, cols);
  if (!result.empty()) {
    std::memset(result.data(), 0, static_cast<std::size_t>(result.bytes()));
  }
  return result;
}

HostTensor HostTensor::clone() const { return slice_rows(0, rows_); }

HostTensor HostTensor::to(Dtype dtype) const {
  if (dtype == dtype_) {
    return clone();
  }
  HostTensor result(dtype, rows_, cols_);
  const std::int64_t count = size();
  if (dtype == Dtype::kBF16) {
    const float* source = f32().data;
    Bf16* target = result.bf16().data;
    for (std::int64_t i = 0; i < count; ++i) {
      target[i] = to_bf16(source[i]);
    }
  } else {
    const Bf16* source = bf16().data;
    float* target = result.f32().data;
    for (std::int64_t i = 0; i < count; ++i) {
      target[i] = to_float(source[i]);
    }
  }
  return result;
}

HostTensor HostTensor::slice_rows(std::int64_t first, std::int64_t count) const {
  if (first < 0 || count < 0 || count > rows_ - first) {
    throw InvalidArgument("rows", fmt::format("[{}, {} + {})", first, first, count),
                          fmt::format("must lie within the tensor's {} rows", rows_));
  }
  HostTensor result(dtype_, count, cols_);
  if (!result.empty()) {
    std::memcpy(result.data(), data() + first * cols_ * dtype_bytes(dtype_),
                static_cast<std::size_t>(result.bytes()));
  }
  return result;
}

MatrixView<float> HostTensor::f32() { return view<float>(dtype_, Dtype::kF32, data_.get(), rows_, cols_); }
MatrixView<const float> HostTensor::f32() const {
  return view<const float>(dtype_, Dtype::kF32, data_.get(), rows_, cols_);
}
MatrixView<Bf16> HostTensor::bf16() { return view<Bf16>(dtype_, Dtype::kBF16, data_.get(), rows_, cols_); }
MatrixView<const Bf16> HostTensor::bf16() const {
  return view<const Bf16>(dtype_, Dtype::kBF16, data_.get(), rows_, cols_);
}

float HostTensor::at(std::int64_t row, std::int64_t col) const {
  if (row < 0 || row >= rows_ || col < 0 || col >= cols_) {
    throw InternalError(fmt::format("element [{}, {}] of a [{}, {}] tensor", row, col, rows_, cols_));
  }
  return dtype_ == Dtype::kF32 ? f32().row(row)[col] : to_float(bf16().row(row)[col]);
}

}  // namespace moescope
