// expert_scores (first half of eq. 7): a sampled dense-dense product, sigma and gate applied.
#include <omp.h>

#include "reference/stages/dense_masked.hpp"
#include "reference/stages/pair_ops.hpp"
#include "reference/stages/stages.hpp"
#include "reference/stages/task_loop.hpp"

namespace moescope::reference {

std::vector<float> expert_scores(const LayerInputs& inputs, const Routing& routing,
                                 const Schedule& schedule) {
  require_same_layer(inputs, routing, schedule);
  if (schedule.kind == ScheduleKind::kDenseMasked) {
    return dense_scores(inputs, routing);
  }
  std::vector<float> scores(routing.expert_ids.size());
  const int threads = omp_get_max_threads();
  auto scratch = pair_scratch(threads, inputs.shape.hidden_size, max_task_pairs(schedule));
  for_each_task(schedule, routing.num_tokens, threads,
                [&](int thread, std::int32_t token, std::span<const std::int64_t> pair_ids) {
                  auto& mine = scratch[static_cast<std::size_t>(thread)];
                  load_token(inputs, token, mine.x);
                  score_pairs(inputs, routing, pair_ids, mine.x.data(), mine.scores);
                  for (std::size_t q = 0; q < pair_ids.size(); ++q) {
                    scores[static_cast<std::size_t>(pair_ids[q])] = mine.scores[q];
                  }
                });
  return scores;
}

}  // namespace moescope::reference
