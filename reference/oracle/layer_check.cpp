#include "reference/oracle/layer_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/worse_error.hpp"
#include "reference/oracle/checks.hpp"
#include "reference/oracle/stage_compare.hpp"

namespace moescope {
namespace {

void judge(const SelectionReport& report, StageCheck& check) {
  check.error = static_cast<double>(report.wrong) /
                static_cast<double>(std::max<std::int64_t>(1, report.compared_pairs));
  check.passed = report.ok();
  check.detail = report.first_wrong;
  check.near_ties = report.near_ties;
}

/// The mirror's layer: under the schedule that ran, or, where it has none such, under one that it has. Their
/// outputs differ by rounding only.
std::unique_ptr<LayerExecution> prepare_mirror(MoeBackend& mirror, const LayerInputs& inputs,
                                               const ScheduleOptions& ran) {
  std::string why;
  return mirror.prepare(
      inputs, mirror.supports(ran.kind, why) ? ran : ScheduleOptions{.kind = ScheduleKind::kTokenCentric});
}

/// Stage by stage, each fed the mirror's outputs of the stages before.
class StageChecks {
 public:
  StageChecks(Checks& checks, const LayerInputs& inputs, LayerExecution& layer, LayerExecution& mirror)
      : checks_(checks), shape_(inputs.shape), layer_(layer), mirror_(mirror) {
    if (inputs.fixed_routing) {
      given_.routing = *inputs.fixed_routing;
    } else {
      given_.logits = mirror_.run_alone(Stage::kRouterProject, {}).logits;
      given_.routing = mirror_.run_alone(Stage::kRouterSelect, given_).routing;
    }
  }

  void schedule_invariants() {
    checks_.add_equality(Stage::kSchedule, "invariants", [&](StageCheck& check) {
      const StageData left = run(Stage::kSchedule, check);
      validate(left.schedule, left.routing);
      return std::string();
    });
  }

  void compare_stage(Stage stage) {
    const Dtype dtype = shape_.dtype;
    switch (stage) {
      case Stage::kRouterProject:
        return compare_logits();
      case Stage::kRouterSelect:
        return compare_selection_and_gates();
      case Stage::kSchedule:
        schedule_invariants();
        checks_.add_equality(stage, "schedule against the mirror", [&](StageCheck& check) {
          const StageData left = run(stage, check);
          return compare_schedules(left.schedule, mirror_.run_alone(stage, left).schedule);
        });
        return;
      case Stage::kExpertScores:
        given_.scores = mirror_.run_alone(stage, given_).scores;
        checks_.add_values(stage, "scores against the mirror",
                           relative_error_tolerance(Dtype::kF32, shape_.hidden_size), [&](StageCheck& check) {
                             return compare_tensors(as_tensor(run(stage, check).scores),
                                                    as_tensor(given_.scores));
                           });
        return;
      case Stage::kExpertCombine:
        return compare_outputs(stage, "sums against the mirror",
                               relative_error_tolerance(dtype, shape_.top_k));
      case Stage::kExperts:
        return compare_outputs(stage, "experts against the mirror",
                               relative_error_tolerance(dtype, shape_.hidden_size + shape_.top_k));
      case Stage::kSharedMlp:
        return compare_outputs(stage, "shared MLP against the mirror",
                               relative_error_tolerance(dtype, shape_.hidden_size + shape_.shared_size));
      default:
        break;
    }
    throw InternalError(fmt::format("{} is no stage of a layer's forward", to_string(stage)));
  }

 private:
  StageData run(Stage stage, StageCheck& check) {
    check.kernels = layer_.kernels(stage);  // of a stage that throws too
    StageData left = layer_.run_alone(stage, given_);
    check.kernels = left.kernels;
    return left;
  }

  void compare_logits() {
    checks_.add(Stage::kRouterProject, "logits against the mirror", "relative_error", [&](StageCheck& check) {
      const RouterLogits ours = run(Stage::kRouterProject, check).logits;
      const ErrorReport row = compare_tensors(ours.row, given_.logits.row);
      const ErrorReport col = compare_tensors(ours.col, given_.logits.col);
      check.error = worse_error(row.relative_error, col.relative_error);
      check.tolerance = relative_error_tolerance(Dtype::kF32, shape_.hidden_size);
      check.passed = row.relative_error <= check.tolerance && col.relative_error <= check.tolerance;
      check.detail = fmt::format("rows: {}; columns: {}", row.describe(), col.describe());
    });
  }

  void compare_selection_and_gates() {
    Routing ours;
    std::string kernels;
    checks_.add(Stage::kRouterSelect, "selection against the mirror", "wrong_pairs", [&](StageCheck& check) {
      ours = run(Stage::kRouterSelect, check).routing;
      kernels = check.kernels;
      ours.validate();
      judge(compare_selections(shape_, given_.logits, ours, given_.routing), check);
    });
    if (ours.num_tokens == given_.routing.num_tokens) {
      checks_.add_values(Stage::kRouterSelect, "gates against the mirror",
                         relative_error_tolerance(Dtype::kF32, shape_.top_k), [&](StageCheck& check) {
                           check.kernels = kernels;
                           return compare_gates(ours, given_.routing);
                         });
    }
  }

  void compare_outputs(Stage stage, const char* what, double tolerance) {
    checks_.add_values(stage, what, tolerance, [&](StageCheck& check) {
      const StageData left = run(stage, check);
      StageData theirs;
      theirs.scores = given_.scores;
      if (stage != Stage::kSharedMlp) {
        left.routing.validate();
        theirs.routing = judged_routing(left.routing, given_.routing);
      }
      return compare_tensors(left.y, mirror_.run_alone(stage, theirs).y);
    });
  }

  Checks& checks_;
  const LayerShape& shape_;
  LayerExecution& layer_;
  LayerExecution& mirror_;
  StageData given_;
};

/// Of a layer end to end: dot products of d terms, then sums of K terms, then the shared MLP's.
std::int64_t reduction_length(const LayerShape& shape) {
  return shape.hidden_size + shape.top_k + shape.shared_size;
}

void check_end_to_end(Checks& checks, LayerExecution& layer, const LayerInputs& inputs,
                      std::int64_t sampled_tokens) {
  const auto tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens);
  HostTensor output;
  Routing routing;
  checks.add_values(Stage::kLayer, "output against the oracle", layer_tolerance(inputs.shape),
                    [&](StageCheck& check) {
                      check.kernels = layer.kernels(Stage::kLayer);
                      layer.run(L2State::kCold);
                      output = layer.output();
                      routing = layer.routing();
                      routing.validate();
                      return compare_with_oracle(inputs, routing, output, tokens);
                    });
  if (routing.num_tokens == 0) {
    return;  // the run itself failed; it says so above
  }
  if (!inputs.fixed_routing) {
    checks.add(Stage::kRouterSelect, "selection against the oracle", "wrong_pairs", [&](StageCheck& check) {
      check.kernels = layer.kernels(Stage::kRouterSelect);
      judge(compare_selection(routing, oracle_routing(inputs, tokens)), check);
    });
  }
  if (layer.deterministic()) {
    checks.add_equality(Stage::kLayer, "second run against the first, bit by bit", [&](StageCheck& check) {
      check.kernels = layer.kernels(Stage::kLayer);
      layer.run(L2State::kWarm);
      const HostTensor again = layer.output();
      return same_bits(output, again) ? std::string() : compare_tensors(again, output).describe();
    });
  }
}

/// Of a layer on several ranks, after a run: no pair lost or doubled, and what moved is what was planned.
void check_exchange_of(Checks& checks, LayerExecution& layer) {
  checks.add_equality(Stage::kTokenDispatch, "exchange against its plan", [&](StageCheck& check) {
    check.kernels = layer.kernels(Stage::kTokenDispatch);
    const RankReport& report = *layer.rank_report();  // throws for a plan that does not hold
    const bool same =
        report.moved.dispatch.empty() ||  // nobody counts on GPUs: the plan has been held against pairs
        (report.moved.dispatch == report.planned.dispatch && report.moved.combine == report.planned.combine);
    return same ? std::string()
                : fmt::format("{} bytes moved, {} planned", report.moved.total(), report.planned.total());
  });
}

}  // namespace

bool LayerCheck::passed() const { return !stages.empty() && first_failure() == nullptr; }

const StageCheck* LayerCheck::first_failure() const {
  const auto found = std::ranges::find(stages, false, &StageCheck::passed);
  return found == stages.end() ? nullptr : &*found;
}

std::int64_t LayerCheck::near_ties() const {
  std::int64_t sum = 0;
  for (const StageCheck& stage : stages) {
    sum += stage.near_ties;
  }
  return sum;
}

const StageCheck* LayerCheck::tightest() const {
  const StageCheck* found = nullptr;
  for (const StageCheck& stage : stages) {
    if (stage.metric == "relative_error" &&
        (found == nullptr || stage.error * found->tolerance > found->error * stage.tolerance)) {
      found = &stage;
    }
  }
  return found;
}

const StageCheck* LayerCheck::layer() const {
  const auto found = std::ranges::find(stages, Stage::kLayer, &StageCheck::stage);
  return found == stages.end() ? nullptr : &*found;
}

ErrorReport compare_with_oracle(const LayerInputs& inputs, const Routing& routing, const HostTensor& output,
                                const std::vector<std::int64_t>& tokens) {
  const OracleLayer oracle = oracle_layer(inputs, {tokens, &routing});
  ErrorReport report = compare(gather_rows(output, tokens), oracle.view());
  report.tolerance = sample_tolerance(inputs.shape.dtype, reduction_length(inputs.shape), oracle.rounding);
  return report;
}

std::function<ErrorReport(const HostTensor&, const Routing&)> oracle_judge(const LayerInputs& inputs,
                                                                           std::int64_t sampled_tokens) {
  return [&inputs, tokens = spread_tokens(inputs.shape.num_tokens, sampled_tokens)](const HostTensor& output,
                                                                                    const Routing& routing) {
    return compare_with_oracle(inputs, routing, output, tokens);
  };
}

double layer_tolerance(const LayerShape& shape) {
  return relative_error_tolerance(shape.dtype, reduction_length(shape));
}

LayerCheck check_layer(MoeBackend& backend, MoeBackend* mirror, const LayerInputs& inputs,
                       const ScheduleOptions& options, std::int64_t sampled_tokens) {
  LayerCheck result;
  Checks checks(result);
  std::unique_ptr<LayerExecution> layer;
  checks.attempt(Stage::kLayer, "the layer prepared", [&] { layer = backend.prepare(inputs, options); });
  if (layer == nullptr) {
    return result;
  }
  if (layer->rank_report() != nullptr) {
    check_end_to_end(checks, *layer, inputs, sampled_tokens);
    check_exchange_of(checks, *layer);
    return result;
  }
  checks.attempt(Stage::kLayer, "its stages run alone", [&] {
    const bool schedules = std::ranges::find(layer->stages(), Stage::kSchedule) != layer->stages().end();
    if (mirror == nullptr) {
      if (schedules) {
        StageChecks(checks, inputs, *layer, *layer).schedule_invariants();
      }
      return;
    }
    const auto trusted = prepare_mirror(*mirror, inputs, layer->schedule_options());
    StageChecks stages(checks, inputs, *layer, *trusted);
    for (const Stage stage : layer->stages()) {
      stages.compare_stage(stage);
    }
  });
  check_end_to_end(checks, *layer, inputs, sampled_tokens);
  return result;
}

}  // namespace moescope
