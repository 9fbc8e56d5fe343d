#include "reference/golden/golden.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/worse_error.hpp"
#include "core/schedule/schedule_info.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/golden/golden_file.hpp"
#include "reference/stages/batch_norm.hpp"
#include "reference/stages/router_select.hpp"
#include "reference/stages/stages.hpp"

namespace moescope {
namespace {

using detail::Golden;
using detail::judged;
using detail::max_relative_error;

/// Row or column half of the published router with its batch norm.
reference::FoldedLinear folded_router(const Golden& golden, std::string_view side, double eps) {
  return reference::fold_batch_norm(golden.matrix(fmt::format("router_gate_{}.weight", side)),
                                    golden.floats(fmt::format("router_norm_{}.running_mean", side)),
                                    golden.floats(fmt::format("router_norm_{}.running_var", side)), eps);
}

LayerInputs omnimoe_inputs(const Golden& golden) {
  LayerInputs inputs;
  inputs.hidden_states = golden.matrix("x");
  const auto eps = golden.number("bn_eps");
  auto row = folded_router(golden, "x", eps);
  auto col = folded_router(golden, "y", eps);
  inputs.router = {std::move(row.weight), std::move(col.weight), std::move(row.bias), std::move(col.bias)};
  auto experts = std::make_shared<ExpertWeights>();
  experts->w_in = golden.matrix("up_embed.weight");
  experts->w_out = golden.matrix("down_embed.weight");
  experts->shared = SharedMlpWeights{golden.matrix("gate_proj.weight"), golden.matrix("up_proj.weight"),
                                     golden.matrix("down_proj.weight")};
  inputs.shape.num_tokens = inputs.hidden_states.rows();
  inputs.shape.hidden_size = inputs.hidden_states.cols();
  inputs.shape.grid_rows = inputs.shape.grid_cols = golden.integer("grid");
  inputs.shape.top_k = golden.integer("top_k");
  inputs.shape.shared_size = experts->shared->gate.rows();
  inputs.shape.dtype = Dtype::kF32;
  inputs.shape.activation = Activation::kSilu;
  inputs.shape.gate_mode = GateMode::kProbability;
  inputs.experts = std::move(experts);
  inputs.workload = golden.path;
  inputs.validate();
  return inputs;
}

GoldenResult replay_omnimoe(const Golden& golden) {
  const LayerInputs inputs = omnimoe_inputs(golden);
  const HostTensor expected = golden.matrix("y");
  ReferenceBackend backend;
  double worst = 0;
  std::string_view where;
  for (const auto kind : named_schedules(/*with_library=*/false)) {
    ScheduleOptions options;
    options.kind = kind;
    const auto execution = backend.prepare(inputs, options);
    execution->run(L2State::kWarm);
    const double error = max_relative_error(execution->output(), expected);
    if (where.empty() || error > worst) {
      worst = error;
      where = to_string(kind);
    }
  }
  return judged("omnimoe", worst, where);
}

/// Recorded selections, [L,K] in the order of falling scores.
struct RecordedSelection {
  std::vector<std::int64_t> indices;
  std::int64_t top_k = 0;

  std::span<const std::int64_t> of(std::int64_t token) const {
    return std::span(indices).subspan(static_cast<std::size_t>(token * top_k),
                                      static_cast<std::size_t>(top_k));
  }
};

bool same_set(std::span<const std::int32_t> ascending_ids, std::span<const std::int64_t> recorded) {
  std::vector<std::int64_t> sorted(recorded.begin(), recorded.end());
  std::sort(sorted.begin(), sorted.end());
  return std::equal(ascending_ids.begin(), ascending_ids.end(), sorted.begin(), sorted.end());
}

/// Our gates in the order of the recorded indices.
std::vector<float> gates_in_order(const Routing& routing, const RecordedSelection& recorded) {
  std::vector<float> gates;
  for (std::int64_t token = 0; token < routing.num_tokens; ++token) {
    const auto ids = routing.ids_of(token);
    for (const auto id : recorded.of(token)) {
      const auto at = std::lower_bound(ids.begin(), ids.end(), id) - ids.begin();
      gates.push_back(routing.gates_of(token)[static_cast<std::size_t>(at)]);
    }
  }
  return gates;
}

/// Our scores in the order of the recorded indices.
std::vector<float> scores_in_order(const RouterLogits& logits, const RecordedSelection& recorded) {
  std::vector<float> scores;
  std::vector<float> row_p(static_cast<std::size_t>(logits.row.cols()));
  std::vector<float> col_p(static_cast<std::size_t>(logits.col.cols()));
  for (std::int64_t token = 0; token < logits.row.rows(); ++token) {
    reference::log_softmax(logits.row.f32().row_span(token), row_p);
    reference::log_softmax(logits.col.f32().row_span(token), col_p);
    for (const auto id : recorded.of(token)) {
      const auto at = static_cast<std::size_t>(id);
      scores.push_back(row_p[at / col_p.size()] + col_p[at % col_p.size()]);
    }
  }
  return scores;
}

GoldenResult replay_router(const Golden& golden) {
  const RouterLogits logits{golden.matrix("row_logits"), golden.matrix("col_logits")};
  const RecordedSelection recorded{golden.integers("indices"), golden.integer("top_k")};
  LayerShape shape;
  shape.num_tokens = logits.row.rows();
  shape.grid_rows = logits.row.cols();
  shape.grid_cols = logits.col.cols();
  shape.top_k = recorded.top_k;
  shape.validate();
  if (std::ssize(recorded.indices) != shape.num_pairs()) {
    throw FileError(golden.path, "indices",
                    fmt::format("has {} values, must have {} for each of {} tokens", recorded.indices.size(),
                                shape.top_k, shape.num_tokens));
  }
  double worst = 0;
  for (const GateMode mode : {GateMode::kSoftmax, GateMode::kProbability}) {
    shape.gate_mode = mode;
    const Routing routing = reference::router_select(shape, logits);
    for (std::int64_t token = 0; token < shape.num_tokens; ++token) {
      if (!same_set(routing.ids_of(token), recorded.of(token))) {
        return {"router", Status::kFailed, fmt::format("token {}: the selected set differs", token),
                std::numeric_limits<double>::infinity()};
      }
    }
    const auto theirs = golden.floats(mode == GateMode::kSoftmax ? "gates_softmax" : "gates_probability");
    worst = worse_error(worst, max_relative_error(gates_in_order(routing, recorded), theirs));
  }
  worst = worse_error(worst, max_relative_error(scores_in_order(logits, recorded), golden.floats("scores")));
  return judged("router", worst, "scores and gates");
}

/// Every value of a replay comes from the file: one that cannot work is the file's fault.
template <class Replay>
GoldenResult of_the_file(const Golden& golden, const Replay& replay) {
  try {
    return replay();
  } catch (const InvalidArgument& error) {
    throw FileError(golden.path, "", error.what());
  }
}

}  // namespace

GoldenResult replay_golden(const std::string& path, ArrayFile file) {
  const Golden golden{path, std::move(file)};
  return of_the_file(golden, [&] {
    if (golden.file.has("router_gate_x.weight")) {
      return replay_omnimoe(golden);
    }
    if (golden.file.has("row_logits")) {
      return replay_router(golden);
    }
    if (const auto system = detail::golden_system(golden)) {
      ReferenceBackend backend;
      return detail::replay_system(golden, *system, backend);
    }
    throw FileError(golden.path, "", "holds no arrays of a known golden file");
  });
}

GoldenResult replay_golden(const std::filesystem::path& path) {
  return replay_golden(path.string(), read_npy_or_npz(path));
}

GoldenResult replay_golden_system(const std::filesystem::path& path, MoeBackend& backend) {
  const Golden golden{path.string(), read_npy_or_npz(path)};
  return of_the_file(golden, [&] {
    const auto system = detail::golden_system(golden);
    if (!system) {
      throw FileError(golden.path, "", "holds no arrays of a baseline system's golden file");
    }
    return detail::replay_system(golden, *system, backend);
  });
}

}  // namespace moescope
