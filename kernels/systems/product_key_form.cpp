#include "kernels/systems/product_key_form.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/tiling/chunks.hpp"

namespace moescope::cuda {
namespace {

// Of an H100; docs/performance/systems.md says which rows they are from.
constexpr double kGatherBytesPerS = 4.0e12;  ///< requested, of rows gathered token by token
constexpr double kMemoryBytesPerS = 2.95e12;
constexpr double kBf16FlopPerS = 777e12;  ///< large products
constexpr double kFp32FlopPerS = 66e12;   ///< multiply-adds in registers: what a product cannot pass
// Launches and whatever else does not grow with the batch, as fitted for OmniMoE's schedules of these names.
constexpr double kGatherFixedS = 1.1e-5;
constexpr double kMaskedFixedS = 5.6e-5;

}  // namespace

ProductKeyForms choose_product_key_form(const SystemShape& shape) {
  const bool peer = shape.system == System::kPeer;
  const double matrices = peer ? 2 : 1;
  const auto row_bytes = static_cast<double>(shape.hidden_size * dtype_bytes(shape.dtype));
  const auto tokens = static_cast<double>(shape.num_tokens);
  const auto experts = static_cast<double>(shape.num_experts);
  const auto pairs = tokens * static_cast<double>(shape.top_k);
  const double flop_per_s = shape.dtype == Dtype::kBF16 ? kBf16FlopPerS : kFp32FlopPerS;
  const double p_bytes = tokens * experts * static_cast<double>(dtype_bytes(shape.dtype));
  const double s_bytes = peer ? tokens * experts * static_cast<double>(dtype_bytes(DenseChunks::kScores)) : 0;

  const double requested = matrices * pairs * row_bytes;
  const double product_s = 2 * tokens * experts * static_cast<double>(shape.hidden_size) / flop_per_s;
  const auto moved_s = [&](double matrix_bytes) {
    return (experts * row_bytes + matrix_bytes) / kMemoryBytesPerS;
  };
  const double products_s =
      std::max(product_s, moved_s(p_bytes)) + (peer ? std::max(product_s, moved_s(s_bytes)) : 0);
  const double mask_s = (s_bytes + p_bytes) / kMemoryBytesPerS;

  ProductKeyForms forms;
  forms.gather_s = kGatherFixedS + requested / kGatherBytesPerS;
  forms.masked_s = kMaskedFixedS + products_s + mask_s;
  const double fast = std::min(forms.gather_s, forms.masked_s);
  const double slow = std::max(forms.gather_s, forms.masked_s);
  forms.explanation = fmt::format(
      "{}, predicted {:.3g} s; next {} at {:.2f}x (rates: from rows recorded on an H100)\n"
      "  token_centric: {:.3g} s (fixed {:.3g} s, requested {:.3g} bytes)\n"
      "  dense_masked: {:.3g} s (fixed {:.3g} s, products {:.3g} s, mask {:.3g} s)",
      forms.masked() ? "dense_masked" : "token_centric", fast,
      forms.masked() ? "token_centric" : "dense_masked", slow / fast, forms.gather_s, kGatherFixedS,
      requested, forms.masked_s, kMaskedFixedS, products_s, mask_s);
  return forms;
}

}  // namespace moescope::cuda
