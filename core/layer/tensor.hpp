#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

#include "core/layer/dtype.hpp"

namespace moescope {

/// Non-owning row-major matrix in host memory: `rows` x `cols`, contiguous. T is float, Bf16, or const of
/// these.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  T* row(std::int64_t r) const { return data + r * cols; }
  std::span<T> row_span(std::int64_t r) const { return {row(r), static_cast<std::size_t>(cols)}; }
  std::int64_t size() const { return rows * cols; }
};

/// Owning row-major matrix in host memory, fp32 or bf16 storage, 64-byte aligned.
/// Movable; copies are explicit (`clone`), because weights are hundreds of megabytes.
class HostTensor {
 public:
  HostTensor() = default;
  /// Uninitialised rows x cols elements. Throws InvalidArgument on negative or overflowing extents.
  HostTensor(Dtype dtype, std::int64_t rows, std::int64_t cols);

  HostTensor(HostTensor&&) noexcept = default;
  HostTensor& operator=(HostTensor&&) noexcept = default;
  HostTensor(const HostTensor&) = delete;
  HostTensor& operator=(const HostTensor&) = delete;
  ~HostTensor() = default;

  static HostTensor zeros(Dtype dtype, std::int64_t rows, std::int64_t cols);
  HostTensor clone() const;
  /// The same values rounded to `dtype` (a copy also when nothing changes).
  HostTensor to(Dtype dtype) const;
  /// A copy of rows [first, first + count).
  HostTensor slice_rows(std::int64_t first, std::int64_t count) const;

  Dtype dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t size() const { return rows_ * cols_; }
  std::int64_t bytes() const { return size() * dtype_bytes(dtype_); }
  bool empty() const { return size() == 0; }

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }

  /// Typed views; throw InternalError when the storage type is another.
  MatrixView<float> f32();
  MatrixView<const float> f32() const;
  MatrixView<Bf16> bf16();
  MatrixView<const Bf16> bf16() const;

  /// One element as float, whatever the storage; for tests and printing, not for inner loops.
  float at(std::int64_t row, std::int64_t col) const;

 private:
  struct AlignedDelete {
    void operator()(std::byte* p) const noexcept { ::operator delete[](p, std::align_val_t{64}); }
  };
  Dtype dtype_ = Dtype::kF32;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::unique_ptr<std::byte[], AlignedDelete> data_;
};

}  // namespace moescope
