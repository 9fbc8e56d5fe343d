#pragma once

#include <string>

#include "core/devices/gpu_rates.hpp"
#include "core/systems/system.hpp"

namespace moescope::cuda {

/// What the two forms of PEER's experts and PKM's combine should take on the GPU.
struct ProductKeyForms {
  double gather_s = 0;      ///< token_centric: the rows of every pair
  double masked_s = 0;      ///< dense_masked: all experts for every token
  std::string explanation;  ///< the choice, then a line for each form

  bool masked() const { return masked_s < gather_s; }
};

/// The model, from shape and rates alone, no device: requested bytes of the gather over their rate, against
/// the dense products, each the longer of its FLOP and of the weights and the matrix [L, N] that it moves,
/// and the pass over that matrix between them.
ProductKeyForms choose_product_key_form(const SystemShape& shape, const ProductKeyRates& rates);

}  // namespace moescope::cuda
