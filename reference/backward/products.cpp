#include "reference/backward/products.hpp"

#include <algorithm>

#include "reference/stages/matrix.hpp"

namespace moescope::reference {
namespace {

constexpr std::int64_t kBlockRows = 64;    // of the result
constexpr std::int64_t kBlockCols = 256;   // of the result
constexpr std::int64_t kBlockTerms = 256;  // of the sum; blocks follow one another in order

/// Rows and columns [row, row + target.rows()) x [col, col + target.cols()), widened to fp32.
void load_block(const HostTensor& source, std::int64_t row, std::int64_t col, MatrixF32& target) {
  with_storage_type(source.dtype(), [&]<class T>(T) {
    const auto view = view_as<T>(source);
    for (std::int64_t r = 0; r < target.rows(); ++r) {
      load_row(view.row(row + r) + col, target.cols(), target.row(r).data());
    }
  });
}

/// Calls add(block of the result, first row, first column, first term, terms), terms ascending, for every
/// block by one thread.
template <class Add>
void for_each_block(MatrixView<float> result, std::int64_t terms, const Add& add) {
  MatrixF32Map out(result.data, result.rows, result.cols);
#pragma omp parallel for collapse(2) schedule(dynamic)
  for (std::int64_t i = 0; i < result.rows; i += kBlockRows) {
    for (std::int64_t j = 0; j < result.cols; j += kBlockCols) {
      auto block =
          out.block(i, j, std::min(kBlockRows, result.rows - i), std::min(kBlockCols, result.cols - j));
      for (std::int64_t k = 0; k < terms; k += kBlockTerms) {
        add(block, i, j, k, std::min(kBlockTerms, terms - k));
      }
    }
  }
}

}  // namespace

void add_product_nn(const HostTensor& a, const HostTensor& b, HostTensor& sum) {
  for_each_block(sum.f32(), a.cols(), [&](auto& block, auto i, auto j, auto k, auto terms) {
    MatrixF32 left(block.rows(), terms);
    MatrixF32 right(terms, block.cols());
    load_block(a, i, k, left);
    load_block(b, k, j, right);
    block.noalias() += left * right;
  });
}

HostTensor matmul_tn(const HostTensor& a, const HostTensor& b) {
  HostTensor out = HostTensor::zeros(Dtype::kF32, a.cols(), b.cols());
  for_each_block(out.f32(), a.rows(), [&](auto& block, auto i, auto j, auto k, auto terms) {
    MatrixF32 left(terms, block.rows());
    MatrixF32 right(terms, block.cols());
    load_block(a, k, i, left);
    load_block(b, k, j, right);
    block.noalias() += left.transpose() * right;
  });
  return out;
}

}  // namespace moescope::reference
