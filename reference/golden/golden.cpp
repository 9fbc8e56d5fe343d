#include "reference/golden/golden.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <utility>

#include "core/base/error.hpp"
#include "core/base/worse_error.hpp"
#include "reference/backend/reference_backend.hpp"
#include "reference/golden/golden_file.hpp"
#include "reference/stages/router_select.hpp"
#include "reference/stages/stages.hpp"

namespace moescope {
namespace {

using detail::Golden;
using detail::judged;
using detail::max_relative_error;

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
      return detail::replay_omnimoe(golden);
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
