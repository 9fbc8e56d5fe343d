#include "kernels/contract/grouped_gemm.hpp"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <string_view>
#include <utility>

#include "core/base/error.hpp"

namespace moescope::cuda {
namespace {

void launch(const GroupedGemm& gemm, const Activation* activation, cudaStream_t stream) {
  const std::int64_t weight_rows = activation != nullptr ? 2 * gemm.n : gemm.n;
  const std::array<std::pair<std::string_view, std::int64_t>, 5> extents{
      {{"grouped_gemm.rows", gemm.rows},
       {"grouped_gemm.n", gemm.n},
       {"grouped_gemm.k", gemm.k},
       {"grouped_gemm.num_experts", gemm.num_experts},
       {"grouped_gemm.weight_rows", weight_rows}}};
  for (const auto& [field, value] : extents) {
    if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) {
      throw InvalidArgument(field, fmt::to_string(value), "in [1, 2^31)");
    }
  }
  // Rows are loaded and stored 16 bytes at a time.
  for (const auto& [field, value] :
       {std::pair<std::string_view, std::int64_t>{"grouped_gemm.n", gemm.n}, {"grouped_gemm.k", gemm.k}}) {
    if (value % 8 != 0) {
      throw InvalidArgument(field, fmt::to_string(value), "must be a multiple of 8");
    }
  }
  if (gemm.dtype == Dtype::kBF16) {
    detail::launch_grouped_gemm_bf16(gemm, activation, stream);
  } else {
    detail::launch_grouped_gemm_f32(gemm, activation, stream);
  }
}

}  // namespace

bool grouped_gemm_supported(Dtype dtype, const GpuTraits& gpu) {
  return dtype == Dtype::kF32 || (gpu.has_wgmma() && detail::grouped_gemm_bf16_built());
}

void launch_grouped_gated(const GroupedGemm& gemm, Activation activation, cudaStream_t stream) {
  launch(gemm, &activation, stream);
}

void launch_grouped_product(const GroupedGemm& gemm, cudaStream_t stream) { launch(gemm, nullptr, stream); }

}  // namespace moescope::cuda
