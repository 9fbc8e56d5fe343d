#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/backend/moe_backend.hpp"
#include "core/layer/tolerance.hpp"
#include "reference/oracle/oracle.hpp"

namespace moescope {

/// Outcome of comparing one stage.
struct StageCheck {
  Stage stage = Stage::kLayer;
  std::string what;  ///< what was compared with what, e.g. "output against the oracle"
  bool passed = false;
  std::string
      metric;  ///< what `error` is: relative_error (Frobenius), wrong_pairs (a fraction), mismatch (0 or 1)
  double error = 0;
  double tolerance = 0;
  std::string detail;  ///< first or worst differing coordinate, both values
  std::string
      kernels;  ///< what ran: "router_select_strips + schedule_strips"; empty where a layer does not say
  std::int64_t near_ties = 0;  ///< of a selection: pairs that differ only by rounding: counted, no error
};

/// Outcome of checking one layer under one schedule.
struct LayerCheck {
  std::vector<StageCheck> stages;

  /// Of all selections that were compared.
  std::int64_t near_ties() const;
  bool passed() const;
  /// Null when everything passed.
  const StageCheck* first_failure() const;
  /// The relative error that comes closest to its tolerance, or is furthest beyond; null when there is none.
  const StageCheck* tightest() const;
  /// The end-to-end comparison with the oracle; null before it ran.
  const StageCheck* layer() const;
};

/// Output of a layer, [L,d], against the fp64 oracle on `tokens`, with the experts that `routing` selected;
/// and the tolerance of just this sample.
ErrorReport compare_with_oracle(const LayerInputs& inputs, const Routing& routing, const HostTensor& output,
                                const std::vector<std::int64_t>& tokens);

/// The same as a function of what ran, for `tokens` spread over the batch. Keeps a reference to `inputs`.
std::function<ErrorReport(const HostTensor& output, const Routing& routing)> oracle_judge(
    const LayerInputs& inputs, std::int64_t sampled_tokens);

/// Largest relative error that a correct layer of this shape may show end to end on many outputs; of few,
/// ErrorReport::tolerance of compare_with_oracle().
double layer_tolerance(const LayerShape& shape);

/// Checks the layer that `backend` prepares: what is compared is what a run runs
/// (LayerExecution::run_alone()).
/// - With `mirror` (another backend to trust; null for none) every stage of the layer alone, fed the mirror's
/// outputs of the stages before: logits, selection, scores. Where the layer goes on from the logits, its
/// experts are compared on its own selection.
/// - The schedule's invariants, in any case.
/// - End to end on `sampled_tokens` tokens: selection against the oracle, output against the oracle on the
/// layer's own selection, so that pairs whose scores differ by rounding only count as near-ties and no more;
/// and, where the execution says it is deterministic, that a second run gives the same bits.
/// A layer on several ranks is checked end to end alone, and its messages against its plan.
/// What a stage throws is its failure, with the message as detail. Throws only std::bad_alloc and
/// OutOfMemory.
LayerCheck check_layer(MoeBackend& backend, MoeBackend* mirror, const LayerInputs& inputs,
                       const ScheduleOptions& options, std::int64_t sampled_tokens);

}  // namespace moescope
