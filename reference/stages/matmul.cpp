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

void add_in_place(HostTensor& sum, const HostTensor& term) {
  const auto to = sum.f32();
  const auto from = term.f32();
#pragma omp parallel for
  for (std::int64_t i = 0; i < to.size(); ++i) {
    to.data[i] += from.data[i];
  }
}

}  // namespace moescope::reference
