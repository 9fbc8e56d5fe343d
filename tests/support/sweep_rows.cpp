#include "tests/support/sweep_rows.hpp"

#include <fmt/format.h>

namespace moescope::test {

namespace {

/// What the metric's name ends with.
std::string unit_of(const std::string& metric) {
  for (const char* ending : {"bytes_per_s", "flop_per_s", "bytes", "flop", "nats"}) {
    if (metric.ends_with(std::string("_") + ending)) {
      return ending;
    }
  }
  return metric == "relative_error" ? "fraction" : std::string(1, 's');  // a literal: GCC's bug 105329
}

}  // namespace

ResultRow make_row(const std::string& schedule, Stage stage, const std::string& metric, double value,
                   std::int64_t num_tokens, const std::string& workload) {
  ResultRow row;
  row.set_shape(
      LayerShape{.num_tokens = num_tokens, .hidden_size = 8, .grid_rows = 4, .grid_cols = 4, .top_k = 2});
  row.schedule = schedule;
  row.stage = to_string(stage);
  row.backend = "cpu";
  row.workload = workload;
  row.l2_state = schedule == "none" ? "none" : "cold";
  row.metric = metric;
  row.unit = unit_of(metric);
  row.value = value;
  row.spread = 0.1;
  row.repro = fmt::format("moescope compare -L {}", num_tokens);
  return row;
}

std::vector<RecordedRun> make_runs() {
  RecordedRun run;
  run.header.run_id = "run";
  run.header.device = "a <machine>";
  run.header.command_line = "moescope sweep a&b.json";
  for (const std::int64_t tokens : {16, 32, 64}) {
    run.rows.push_back(make_row("none", Stage::kRouterSelect, "unevenness_nats", 1.25, tokens));
    run.rows.push_back(make_row("none", Stage::kExperts, "floor_bytes", 1000, tokens));
    for (const char* schedule : {"token_centric", "staircase"}) {
      const double time = static_cast<double>(tokens) * 1e-3;
      run.rows.push_back(make_row(schedule, Stage::kLayer, "time_s", 2 * time, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExpertScores, "time_s", time, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExpertCombine, "time_s", time / 2, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExperts, "l2_read_bytes", 1500, tokens));
      run.rows.push_back(make_row(schedule, Stage::kExperts, "l2_write_bytes", 500, tokens));
      run.rows.push_back(make_row(schedule, Stage::kLayer, "relative_error", 2e-3, tokens));
    }
  }
  ResultRow failed = make_row("dense_masked", Stage::kLayer, "time_s", 1, 64);
  failed.value.reset();
  failed.spread.reset();
  failed.status = Status::kFailed;
  failed.reason = "no <memory>";
  run.rows.push_back(failed);
  return {run};
}

}  // namespace moescope::test
