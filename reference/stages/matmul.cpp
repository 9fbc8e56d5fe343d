#include "reference/stages/matmul.hpp"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "reference/stages/matrix.hpp"

namespace moescope::reference {
namespace {

constexpr std::int64_t kBlockRows = 64;   // rows of a per block
constexpr std::int64_t kBlockCols = 256;  // rows of b per block; with d = 1024 both blocks fit 1.3 MB in fp32

}  // namespace

HostTensor matmul_nt(const HostTensor& a, const HostTensor& b) {
  HostTensor out(Dtype::kF32, a.rows(), b.rows());
  const auto view = out.f32();
  MatrixF32Map c(view.data, view.rows, view.cols);
  struct Scratch {
    MatrixF32 a;
    MatrixF32 b;
  };
  const int threads = omp_get_max_threads();
  std::vector<Scratch> scratch(static_cast<std::size_t>(threads),
                               {MatrixF32(std::min(kBlockRows, a.rows()), a.cols()),
                                MatrixF32(std::min(kBlockCols, b.rows()), b.cols())});
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
  for (std::int64_t i = 0; i < view.rows; i += kBlockRows) {
    for (std::int64_t j = 0; j < view.cols; j += kBlockCols) {
      auto& mine = scratch[static_cast<std::size_t>(omp_get_thread_num())];
      auto a_block = mine.a.topRows(std::min(kBlockRows, view.rows - i));
      auto b_block = mine.b.topRows(std::min(kBlockCols, view.cols - j));
      load_rows(a, i, a_block);
      load_rows(b, j, b_block);
      c.block(i, j, a_block.rows(), b_block.rows()).noalias() = a_block * b_block.transpose();
    }
  }
  return out;
}

double matmul_scratch_bytes(std::int64_t length) {
  return static_cast<double>((kBlockRows + kBlockCols) * sizeof(float)) * static_cast<double>(length);
}

double scores_scratch_bytes(std::int64_t length) {
  return static_cast<double>(2 * kBlockRows * sizeof(float)) * static_cast<double>(length);
}

void dot_rows(MatrixView<const float> a, MatrixView<const float> b, float* out, std::int64_t out_stride) {
  constexpr std::int64_t kTile = 4;  // rows of either that stay in L1 while they meet
  for (std::int64_t i = 0; i < a.rows; i += kTile) {
    const std::int64_t i_end = std::min(i + kTile, a.rows);
    for (std::int64_t j = 0; j < b.rows; j += kTile) {
      const std::int64_t j_end = std::min(j + kTile, b.rows);
      for (std::int64_t row = i; row < i_end; ++row) {
        for (std::int64_t col = j; col < j_end; ++col) {
          out[row * out_stride + col] = dot(a.row(row), b.row(col), a.cols);
        }
      }
    }
  }
}

HostTensor scores_nt(const HostTensor& a, const HostTensor& b) {
  HostTensor out(Dtype::kF32, a.rows(), b.rows());
  const auto view = out.f32();
#pragma omp parallel
  {
    MatrixF32 a_rows;
    MatrixF32 b_rows;
#pragma omp for collapse(2) schedule(dynamic)
    for (std::int64_t i = 0; i < view.rows; i += kBlockRows) {
      for (std::int64_t j = 0; j < view.cols; j += kBlockRows) {
        a_rows.resize(std::min(kBlockRows, view.rows - i), a.cols());
        b_rows.resize(std::min(kBlockRows, view.cols - j), b.cols());
        load_rows(a, i, a_rows);
        load_rows(b, j, b_rows);
        dot_rows({a_rows.data(), a_rows.rows(), a_rows.cols()}, {b_rows.data(), b_rows.rows(), b_rows.cols()},
                 view.row(i) + j, view.cols);
      }
    }
  }
  return out;
}

void add_in_place(HostTensor& sum, const HostTensor& term) {
  const auto to = sum.f32();
  const auto from = term.f32();
#pragma omp parallel for
  for (std::int64_t i = 0; i < to.size(); ++i) {
    to.data[i] += from.data[i];
  }
}

}  // namespace moescope::reference
