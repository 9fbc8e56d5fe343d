// expert_combine (second half of eq. 7): a sparse-dense product, accumulated in the schedule's order.
#include <omp.h>

#include "reference/stages/dense_masked.hpp"
#include "reference/stages/pair_ops.hpp"
#include "reference/stages/rounding.hpp"
#include "reference/stages/stages.hpp"
#include "reference/stages/task_loop.hpp"

namespace moescope::reference {

bool rounds_scores(ScheduleKind kind, Dtype dtype) {
  return dtype != Dtype::kF32 && kind != ScheduleKind::kTokenCentric;
}

HostTensor expert_combine(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule,
                          std::span<const float> scores) {
  require_same_layer(inputs, routing, schedule);
  require_scores(routing, scores);
  if (schedule.kind == ScheduleKind::kDenseMasked) {
    return dense_combine(inputs, routing, scores);
  }
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  const auto y = out.f32();
  const bool rounds = rounds_scores(schedule.kind, inputs.shape.dtype);
  const int threads = omp_get_max_threads();
  std::vector<std::vector<float>> scratch(
      static_cast<std::size_t>(threads),
      std::vector<float>(static_cast<std::size_t>(max_task_pairs(schedule))));
  for_each_task(schedule, routing.num_tokens, threads,
                [&](int thread, std::int32_t token, std::span<const std::int64_t> pair_ids) {
                  const auto p = std::span(scratch[static_cast<std::size_t>(thread)]).first(pair_ids.size());
                  for (std::size_t q = 0; q < pair_ids.size(); ++q) {
                    p[q] = scores[static_cast<std::size_t>(pair_ids[q])];
                  }
                  if (rounds) {
                    round_span(p, inputs.shape.dtype);
                  }
                  combine_pairs(inputs, routing, pair_ids, p, y.row(token));
                });
  return out;
}

}  // namespace moescope::reference
