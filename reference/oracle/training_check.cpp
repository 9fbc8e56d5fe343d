#include "reference/oracle/training_check.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>
#include <utility>

#include "core/base/error.hpp"
#include "reference/oracle/checks.hpp"
#include "reference/oracle/gradient_start.hpp"
#include "reference/oracle/stage_compare.hpp"

namespace moescope {
namespace {

constexpr double kToleranceBf16 = 5e-3;
constexpr double kToleranceF32 = 1e-5;
/// Below this fraction of its terms a gradient is nothing but what cancellation left in fp64.
constexpr double kNothing = 1e-11;
/// Elements of dW that the oracle works out in whole.
constexpr std::int64_t kWholeElements = 1 << 22;
constexpr std::int64_t kSampledRows = 64;

HostTensor as_row(const std::vector<float>& values) { return as_tensor(values); }

/// First expert without tokens whose row of a gradient is not what it was before the run: zero, or of `start`
/// where there is one. Under kTouched their rows mean nothing. Empty when there is none, and the list is right.
std::string wrong_rows(const LayerGradients& ours, const Routing& routing, GradientForm form,
                       const LayerGradients* start) {
  const auto expected = touched_experts(routing);
  if (ours.touched_experts != expected) {
    return fmt::format("{} touched experts are listed, {} have pairs", ours.touched_experts.size(),
                       expected.size());
  }
  if (form == GradientForm::kTouched) {
    return {};
  }
  const auto loads = expert_loads(routing);
  for (const bool is_in : {true, false}) {
    const HostTensor& gradient = is_in ? ours.w_in : ours.w_out;
    for (std::size_t expert = 0; expert < loads.size(); ++expert) {
      const auto row = static_cast<std::int64_t>(expert);
      for (std::int64_t k = 0; loads[expert] == 0 && k < gradient.cols(); ++k) {
        const float before = start == nullptr ? 0 : (is_in ? start->w_in : start->w_out).at(row, k);
        if (gradient.at(row, k) != before) {
          return fmt::format("expert {} has no tokens, but a gradient of {} in column {}, not {}", expert,
                             gradient.at(row, k), k, before);
        }
      }
    }
  }
  return {};
}

std::string first_difference(const LayerGradients& a, const LayerGradients& b) {
  const auto differs = [](const HostTensor& x, const HostTensor& y) { return !same_bits(x, y); };
  if (differs(a.hidden_states, b.hidden_states)) return "dX differs";
  if (differs(a.w_in, b.w_in)) return "dW differs";
  if (differs(a.w_out, b.w_out)) return "dV differs";
  if (differs(as_row(a.gates), as_row(b.gates))) return "gradients of the gates differ";
  if (differs(a.router_row, b.router_row)) return "dWr differs";
  if (differs(a.router_col, b.router_col)) return "dWc differs";
  if (a.shared && (differs(a.shared->gate, b.shared->gate) || differs(a.shared->up, b.shared->up) ||
                   differs(a.shared->down, b.shared->down))) {
    return "gradients of the shared MLP differ";
  }
  return {};
}

/// The gradients themselves are large: of the first run, what the second is held against.
LayerGradients clone(const LayerGradients& g) {
  LayerGradients copy;
  copy.hidden_states = g.hidden_states.clone();
  copy.w_in = g.w_in.clone();
  copy.w_out = g.w_out.clone();
  copy.gates = g.gates;
  copy.router_row = g.router_row.clone();
  copy.router_col = g.router_col.clone();
  if (g.shared) {
    copy.shared = SharedMlpWeights{g.shared->gate.clone(), g.shared->up.clone(), g.shared->down.clone()};
  }
  return copy;
}

/// A gradient of a step beside the oracle's.
struct GradientPair {
  Stage stage;
  std::string_view of;
  HostTensor ours;
  const OracleGradient* truth;
};

/// Every gradient that the layer has, as far as the oracle's sample goes.
std::vector<GradientPair> gradient_pairs(const LayerGradients& ours, const OracleTraining& truth,
                                         bool has_router) {
  std::vector<GradientPair> pairs;
  const auto add = [&](Stage stage, std::string_view of, HostTensor tensor, const OracleGradient& expected) {
    pairs.push_back({stage, of, std::move(tensor), &expected});
  };
  add(Stage::kLayer, "dX", gather_rows(ours.hidden_states, truth.sample.tokens), truth.hidden_states);
  add(Stage::kExpertsDgrad, "gates' gradients", as_row(ours.gates), truth.gates);
  add(Stage::kExpertsWgrad, "dW", gather_rows(ours.w_in, truth.sample.experts), truth.w_in);
  add(Stage::kExpertsWgrad, "dV", gather_rows(ours.w_out, truth.sample.experts), truth.w_out);
  if (has_router) {
    add(Stage::kRouterSelectBackward, "row logits", ours.logits.row.clone(), truth.row_logits);
    add(Stage::kRouterSelectBackward, "column logits", ours.logits.col.clone(), truth.col_logits);
    add(Stage::kRouterProjectBackward, "dWr", ours.router_row.clone(), truth.router_row);
    add(Stage::kRouterProjectBackward, "dWc", ours.router_col.clone(), truth.router_col);
    if (!truth.row_bias.empty()) {
      add(Stage::kRouterProjectBackward, "row bias", as_row(ours.row_bias), truth.row_bias);
    }
    if (!truth.col_bias.empty()) {
      add(Stage::kRouterProjectBackward, "column bias", as_row(ours.col_bias), truth.col_bias);
    }
  }
  if (ours.shared) {
    const auto& units = truth.sample.units;
    add(Stage::kSharedMlpBackward, "gate matrix", gather_rows(ours.shared->gate, units), truth.shared_gate);
    add(Stage::kSharedMlpBackward, "up matrix", gather_rows(ours.shared->up, units), truth.shared_up);
    add(Stage::kSharedMlpBackward, "down matrix", gather_rows(transposed(ours.shared->down), units),
        truth.shared_down);
  }
  return pairs;
}

class TrainingChecks {
 public:
  TrainingChecks(LayerCheck& result, const LayerInputs& inputs, const HostTensor& dy,
                 const TrainingOptions& training, TrainingExecution& step, std::string_view what)
      : checks_(result), inputs_(inputs), dy_(dy), training_(training), step_(step), what_(what) {}

  void run(std::int64_t sampled_tokens) {
    const Routing routing = step_.routing();
    OracleTraining truth = oracle_training(inputs_, dy_, &routing, training_,
                                           training_sample(inputs_, routing, sampled_tokens, training_.form));
    if (training_.form == GradientForm::kAdded) {
      start_ = made_start(step_.gradients());
      run_from_start();
      add_start(truth, *start_);
    }
    const LayerGradients& ours = step_.gradients();
    selection(routing, truth.sample.tokens);
    output(truth);
    for (const GradientPair& pair : gradient_pairs(ours, truth, !inputs_.fixed_routing)) {
      add(pair);
    }
    checks_.add_equality(Stage::kExpertsWgrad, name("rows of experts without tokens"),
                         [&](StageCheck&) {
                           return wrong_rows(ours, routing, training_.form, start_ ? &*start_ : nullptr);
                         });
    if (!inputs_.fixed_routing) {
      loss("balance loss", ours.balance_loss, truth.balance_loss);
      loss("z-loss", ours.z_loss, truth.z_loss);
    }
    if (step_.deterministic()) {
      repeats(ours);
    }
  }

 private:
  std::string name(std::string_view of) const {
    return what_.empty() ? std::string(of) : fmt::format("{}: {}", what_, of);
  }

  void add(const GradientPair& pair) {
    checks_.add(pair.stage, name(pair.of), "relative_error", [&](StageCheck& check) {
      check.kernels = step_.kernels(pair.stage);
      const GradientReport report = compare_gradient(pair.ours, *pair.truth, inputs_.shape.dtype);
      check.error = report.error;
      check.tolerance = report.tolerance;
      check.passed = report.passed();
      check.detail = fmt::format("relative error {:.3g} of {:.3g}, terms cancel by {:.3g}", report.error,
                                 report.tolerance, report.cancellation);
    });
  }

  void selection(const Routing& routing, const std::vector<std::int64_t>& tokens) {
    if (inputs_.fixed_routing || training_.batch_norm) {
      return;  // given; or from logits that a plain layer's oracle does not have
    }
    checks_.add(Stage::kRouterSelect, name("selection against the oracle"), "wrong_pairs",
                [&](StageCheck& check) {
                  const SelectionReport report = compare_selection(routing, oracle_routing(inputs_, tokens));
                  check.error = static_cast<double>(report.wrong) /
                                static_cast<double>(std::max<std::int64_t>(1, report.compared_pairs));
                  check.passed = report.ok();
                  check.detail = report.first_wrong;
                  check.near_ties = report.near_ties;
                });
  }

  void output(const OracleTraining& truth) {
    checks_.add(Stage::kLayer, name("output"), "relative_error", [&](StageCheck& check) {
      const auto d = inputs_.shape.hidden_size;
      const ErrorReport report = compare(gather_rows(step_.output(), truth.sample.tokens),
                                         {truth.y.data(), std::ssize(truth.sample.tokens), d});
      check.error = report.relative_error;
      check.tolerance = std::max(layer_tolerance(inputs_.shape), gradient_tolerance(inputs_.shape.dtype));
      check.passed = report.relative_error <= check.tolerance;
      check.detail = report.describe();
    });
  }

  void loss(const char* of, double ours, double expected) {
    if (expected > 0) {
      checks_.add(Stage::kRouterSelectBackward, name(of), "relative_error", [&](StageCheck& check) {
        check.error = std::abs(ours - expected) / expected;
        check.tolerance = kToleranceF32;  // of fp32 logits in either storage
        check.passed = check.error <= check.tolerance;
        check.detail = fmt::format("{} against {}", ours, expected);
      });
    }
  }

  void repeats(const LayerGradients& ours) {
    checks_.add_equality(Stage::kLayer, name("second run against the first, bit by bit"), [&](StageCheck&) {
      const LayerGradients first = clone(ours);
      run_from_start();
      return first_difference(first, step_.gradients());
    });
  }

  void run_from_start() {
    if (start_) {
      add_once(step_, *start_);
    } else {
      step_.run(L2State::kWarm);
    }
  }

  Checks checks_;
  std::optional<LayerGradients> start_;  ///< what gradients are added to
  const LayerInputs& inputs_;
  const HostTensor& dy_;
  const TrainingOptions& training_;
  TrainingExecution& step_;
  std::string_view what_;
};

}  // namespace

double gradient_tolerance(Dtype dtype) { return dtype == Dtype::kBF16 ? kToleranceBf16 : kToleranceF32; }

GradientReport compare_gradient(const HostTensor& ours, const OracleGradient& truth, Dtype dtype) {
  GradientReport report;
  report.tolerance = gradient_tolerance(dtype);
  double error_squares = 0;
  double squares = 0;
  bool fits = ours.rows() == truth.rows && ours.cols() == truth.cols;
  for (std::int64_t r = 0; fits && r < truth.rows; ++r) {
    for (std::int64_t c = 0; c < truth.cols; ++c) {
      const double expected = truth.row(r)[c];
      const double error = ours.at(r, c) - expected;
      error_squares += error * error;
      squares += expected * expected;
    }
  }
  const bool nothing = squares <= kNothing * kNothing * truth.term_squares;
  const double scale = std::sqrt(nothing ? truth.term_squares : squares);
  if (!fits || !std::isfinite(error_squares) || !std::isfinite(scale)) {
    report.error = std::numeric_limits<double>::infinity();
    return report;
  }
  if (scale == 0) {  // nothing was added up: exactly zero
    report.error = error_squares == 0 ? 0 : std::numeric_limits<double>::infinity();
    return report;
  }
  report.error = std::sqrt(error_squares) / scale;
  if (!nothing) {
    report.cancellation = std::max(1.0, std::sqrt(truth.term_squares) / scale);
    report.tolerance *= report.cancellation;
  }
  return report;
}

OracleSample training_sample(const LayerInputs& inputs, const Routing& routing, std::int64_t sampled_tokens,
                             GradientForm form) {
  const auto& shape = inputs.shape;
  OracleSample sample;
  sample.tokens = spread_tokens(shape.num_tokens, sampled_tokens);
  if (shape.num_experts() * shape.hidden_size > kWholeElements) {
    const auto touched = touched_experts(routing);
    for (const auto at : spread_tokens(std::ssize(touched), kSampledRows)) {
      sample.experts.push_back(touched[static_cast<std::size_t>(at)]);
    }
    const auto loads = expert_loads(routing);
    if (const auto idle = std::ranges::find(loads, 0);
        idle != loads.end() && form != GradientForm::kTouched) {
      sample.experts.push_back(idle - loads.begin());
    }
    std::ranges::sort(sample.experts);
  } else if (form == GradientForm::kTouched) {
    const auto touched = touched_experts(routing);
    sample.experts.assign(touched.begin(), touched.end());
  }
  if (shape.shared_size * shape.hidden_size > kWholeElements / 16) {
    sample.units = spread_tokens(shape.shared_size, kSampledRows);
  }
  return sample;
}

WorstGradient worst_gradient(const LayerInputs& inputs, const HostTensor& dy, const TrainingOptions& training,
                             TrainingExecution& step, std::int64_t sampled_tokens) {
  const Routing routing = step.routing();
  const OracleTraining truth = oracle_training(
      inputs, dy, &routing, training, training_sample(inputs, routing, sampled_tokens, training.form));
  if (training.form == GradientForm::kAdded) {
    add_once(step, zero_start(step.gradients()));
  }
  WorstGradient worst;
  double nearest = -1;
  for (const GradientPair& pair : gradient_pairs(step.gradients(), truth, !inputs.fixed_routing)) {
    const GradientReport report = compare_gradient(pair.ours, *pair.truth, inputs.shape.dtype);
    if (report.error / report.tolerance > nearest) {
      nearest = report.error / report.tolerance;
      worst.of = pair.of;
      worst.report = compare(pair.ours, pair.truth->view());
      worst.report.tolerance = report.tolerance;
    }
  }
  return worst;
}

LayerCheck check_training(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                          const ScheduleOptions& options, const TrainingOptions& training,
                          std::int64_t sampled_tokens, std::string_view what) {
  LayerCheck result;
  Checks checks(result);
  const auto name = [&](std::string_view of) {
    return what.empty() ? std::string(of) : fmt::format("{}: {}", what, of);
  };
  std::unique_ptr<TrainingExecution> step;
  checks.attempt(Stage::kLayer, name("the step prepared"),
                 [&] { step = backend.prepare_training(inputs, dy, options, training); });
  if (step == nullptr) {
    return result;
  }
  checks.attempt(Stage::kLayer, name("the step run"), [&] {
    step->run(L2State::kWarm);
    TrainingChecks(result, inputs, dy, training, *step, what).run(sampled_tokens);
  });
  return result;
}

LayerCheck check_training_modes(MoeBackend& backend, const LayerInputs& inputs, const HostTensor& dy,
                                const ScheduleOptions& options, std::span<const SaveMode> saves,
                                std::int64_t sampled_tokens) {
  LayerCheck all;
  const auto add = [&](const TrainingOptions& training, const std::string& what) {
    LayerCheck one = check_training(backend, inputs, dy, options, training, sampled_tokens, what);
    std::ranges::move(one.stages, std::back_inserter(all.stages));
  };
  TrainingOptions training;
  for (const SaveMode save : saves) {
    training.save = save;
    add(training, fmt::format("{} saved", to_string(save)));
  }
  for (const GradientForm form : {GradientForm::kTouched, GradientForm::kAdded}) {
    training.form = form;
    add(training, fmt::format("gradients {}", to_string(form)));
  }
  training.form = GradientForm::kStored;
  if (inputs.fixed_routing) {
    return all;
  }
  // As large as what comes from dy, so that an error in them shows.
  const auto weight = static_cast<double>(inputs.shape.num_tokens);
  training.losses = {.balance = weight, .z = weight};
  add(training, "auxiliary losses");
  if (inputs.shape.num_tokens > 1 && inputs.router.row_bias.empty() && inputs.router.col_bias.empty()) {
    training.batch_norm = BatchNorm{};
    add(training, "batch norm");
  }
  return all;
}

}  // namespace moescope
