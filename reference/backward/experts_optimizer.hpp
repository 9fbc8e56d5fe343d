#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/layer/optimizer.hpp"
#include "core/layer/tensor.hpp"

namespace moescope::reference {

/// AdamW on a table of experts, W or V [N,d]: only rows with a gradient are read and written, since the rest
/// are most of a step's bytes. A row remembers the last step it took part in; what a dense step would have
/// done to it since (decay, moments that fade, the movement left in them) is made up for when it is needed:
/// by step() before its own update, and by catch_up(), which a forward that is to read exactly what a dense
/// optimizer has calls for the rows its routing selected. flush() does so for all rows, before a checkpoint.
/// Then a dense AdamW's result is met but for AdamWOptions::replay_steps and rounding.
/// fp32 state: first and second moment, and the weights themselves, of which `weights` is the rounded copy.
/// Rows are independent: bit-identical whatever the number of threads. Not for rows listed twice.
class ExpertsOptimizer {
 public:
  /// Throws InvalidArgument for the options.
  ExpertsOptimizer(const HostTensor& weights, const AdamWOptions& options);

  /// One step: of `rows` (ascending, distinct), with their rows of `gradient` [N,d], fp32 or bf16. Throws
  /// InvalidArgument for rows out of order or range, or extents that do not fit.
  void step(HostTensor& weights, const HostTensor& gradient, std::span<const std::int32_t> rows);
  /// The same of every row: what a dense optimizer does.
  void dense_step(HostTensor& weights, const HostTensor& gradient);

  /// Makes up for the steps that `rows` missed.
  void catch_up(HostTensor& weights, std::span<const std::int32_t> rows);
  void flush(HostTensor& weights);

  std::int64_t steps() const { return steps_; }
  /// fp32 weights, moments and the last step of every row.
  std::int64_t state_bytes() const;

 private:
  void require_fit(const HostTensor& weights) const;
  void require_rows(std::span<const std::int32_t> rows) const;
  void make_up(std::int64_t row, std::int64_t until);
  void update(std::int64_t row, std::span<const float> gradient);
  void store(std::int64_t row, HostTensor& weights) const;
  std::vector<std::int32_t> all_rows() const;

  AdamWOptions options_;
  HostTensor weights_;                   ///< [N,d] fp32
  HostTensor first_;                     ///< [N,d] fp32
  HostTensor second_;                    ///< [N,d] fp32
  std::vector<std::int32_t> last_step_;  ///< [N]
  std::int64_t steps_ = 0;
};

}  // namespace moescope::reference
