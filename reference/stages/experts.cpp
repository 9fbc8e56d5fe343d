// experts (eq. 7): scores and combine together, task by task, as the fused kernels do it.
#include <omp.h>

#include "reference/stages/dense_masked.hpp"
#include "reference/stages/pair_ops.hpp"
#include "reference/stages/rounding.hpp"
#include "reference/stages/stages.hpp"
#include "reference/stages/task_loop.hpp"

namespace moescope::reference {

HostTensor experts(const LayerInputs& inputs, const Routing& routing, const Schedule& schedule) {
  require_same_layer(inputs, routing, schedule);
  if (schedule.kind == ScheduleKind::kDenseMasked) {
    return dense_combine(inputs, routing, dense_scores(inputs, routing));
  }
  HostTensor out = HostTensor::zeros(Dtype::kF32, inputs.shape.num_tokens, inputs.shape.hidden_size);
  const auto y = out.f32();
  const bool rounds = rounds_scores(schedule.kind, inputs.shape.dtype);
  const int threads = omp_get_max_threads();
  auto scratch = pair_scratch(threads, inputs.shape.hidden_size, max_task_pairs(schedule));
  for_each_task(schedule, routing.num_tokens, threads,
                [&](int thread, std::int32_t token, std::span<const std::int64_t> pair_ids) {
                  auto& mine = scratch[static_cast<std::size_t>(thread)];
                  const auto p = std::span(mine.scores).first(pair_ids.size());
                  load_token(inputs, token, mine.x);
                  score_pairs(inputs, routing, pair_ids, mine.x.data(), p);
                  if (rounds) {
                    round_span(p, inputs.shape.dtype);
                  }
                  combine_pairs(inputs, routing, pair_ids, p, y.row(token));
                });
  return out;
}

}  // namespace moescope::reference
