#include "kernels/systems/product_key_form.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/tiling/chunks.hpp"

namespace moescope::cuda {

ProductKeyForms choose_product_key_form(const SystemShape& shape, const ProductKeyRates& rates) {
  const bool peer = shape.system == System::kPeer;
  const double matrices = peer ? 2 : 1;
  const auto row_bytes = static_cast<double>(shape.hidden_size * dtype_bytes(shape.dtype));
  const auto tokens = static_cast<double>(shape.num_tokens);
  const auto experts = static_cast<double>(shape.num_experts);
  const auto pairs = tokens * static_cast<double>(shape.top_k);
  const double flop_per_s = shape.dtype == Dtype::kBF16 ? rates.bf16_flop_per_s : rates.fp32_flop_per_s;
  const double p_bytes = tokens * experts * static_cast<double>(dtype_bytes(shape.dtype));
  const double s_bytes = peer ? tokens * experts * static_cast<double>(dtype_bytes(DenseChunks::kScores)) : 0;

  const double requested = matrices * pairs * row_bytes;
  const double product_s = 2 * tokens * experts * static_cast<double>(shape.hidden_size) / flop_per_s;
  const auto moved_s = [&](double matrix_bytes) {
    return (experts * row_bytes + matrix_bytes) / rates.memory_bytes_per_s;
  };
  const double products_s =
      std::max(product_s, moved_s(p_bytes)) + (peer ? std::max(product_s, moved_s(s_bytes)) : 0);
  const double mask_s = (s_bytes + p_bytes) / rates.memory_bytes_per_s;

  ProductKeyForms forms;
  forms.gather_s = rates.gather_fixed_s + requested / rates.gather_bytes_per_s;
  forms.masked_s = rates.masked_fixed_s + products_s + mask_s;
  const double fast = std::min(forms.gather_s, forms.masked_s);
  const double slow = std::max(forms.gather_s, forms.masked_s);
  forms.explanation = fmt::format(
      "{}, predicted {:.3g} s; next {} at {:.2f}x (rates: {})\n"
      "  token_centric: {:.3g} s (fixed {:.3g} s, requested {:.3g} bytes)\n"
      "  dense_masked: {:.3g} s (fixed {:.3g} s, products {:.3g} s, mask {:.3g} s)",
      forms.masked() ? "dense_masked" : "token_centric", fast,
      forms.masked() ? "token_centric" : "dense_masked", slow / fast, rates.source, forms.gather_s,
      rates.gather_fixed_s, requested, forms.masked_s, rates.masked_fixed_s, products_s, mask_s);
  return forms;
}

}  // namespace moescope::cuda
