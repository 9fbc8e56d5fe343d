// Apart from auto_schedule.cpp for whoever predicts without building schedules.
#include <algorithm>
#include <array>
#include <cmath>

#include "core/cost/auto_schedule.hpp"
#include "core/tiling/selection_form.hpp"

namespace moescope {

double ScheduleWork::predicted_s(const ScheduleRates& rates) const {
  const double chain_bytes_s = rates.chain_bytes_per_s > 0 ? chain_bytes / rates.chain_bytes_per_s : 0;
  const std::array times{memory_bytes / rates.memory_bytes_per_s, requested_bytes / rates.cache_bytes_per_s,
                         flop / rates.flop_per_s, pairs * rates.pair_s, steps * rates.step_s + chain_bytes_s};
  const double longest = std::ranges::max(times);
  if (std::isinf(rates.sharpness) || longest <= 0) {
    return rates.fixed_s + longest;
  }
  double sum = 0;
  for (const double time : times) {
    sum += std::pow(time / longest, rates.sharpness);
  }
  return rates.fixed_s + longest * std::pow(sum, 1 / rates.sharpness);
}

SelectionRates::Terms select_terms(const LayerShape& shape) {
  const auto tokens = static_cast<double>(shape.num_tokens);
  const auto top_k = static_cast<double>(shape.top_k);
  const auto side = static_cast<double>(std::max(shape.grid_rows, shape.grid_cols));
  const auto sides = static_cast<double>(shape.grid_rows + shape.grid_cols);
  return {1, side, top_k, top_k * side, tokens, tokens * top_k, tokens * sides};
}

const SelectionRates::Terms& SelectionRates::of(const LayerShape& shape, bool strips,
                                                std::int64_t num_sms) const {
  GpuTraits gpu;
  gpu.num_sms = num_sms;
  if (strips) {
    return strips_by_eight_warps(shape, gpu) ? strips_of_few : strips_of_many;
  }
  return csr_by_eight_warps(shape, gpu) ? pairs_of_few : pairs_of_many;
}

double SelectionRates::predicted_s(const LayerShape& shape, bool strips, std::int64_t num_sms) const {
  const Terms& rates = of(shape, strips, num_sms);
  const Terms terms = select_terms(shape);
  double sum = 0;
  for (std::size_t i = 0; i < kTerms; ++i) {
    sum += rates[i] * terms[i];
  }
  return sum;
}

}  // namespace moescope
