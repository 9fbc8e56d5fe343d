#pragma once

#include "core/result.hpp"

/// The one list of what a row and a run header hold, in file order, for the writers and the reader of
/// results. Not for use outside core/result*.cpp.
namespace moescope::detail {

/// Calls visit(key, member) for every field of a row, in column order; keys are those of DESIGN section 8 and
/// result.schema.json. schema_version and run_id come before these and belong to the run, not to the row.
template <class Row, class Visit>
void for_each_row_field(Row& row, Visit&& visit) {
  visit("system", row.system);
  visit("schedule", row.schedule);
  visit("stage", row.stage);
  visit("backend", row.backend);
  visit("L", row.num_tokens);
  visit("d", row.hidden_size);
  visit("Nr", row.grid_rows);
  visit("Nc", row.grid_cols);
  visit("K", row.top_k);
  visit("dtype", row.dtype);
  visit("workload", row.workload);
  visit("seed", row.seed);
  visit("l2_state", row.l2_state);
  visit("source", row.source);
  visit("metric", row.metric);
  visit("value", row.value);
  visit("unit", row.unit);
  visit("samples", row.samples);
  visit("spread", row.spread);
  visit("status", row.status);
  visit("reason", row.reason);
}

/// The same for the object under "header"; run_id stands beside it.
template <class Header, class Visit>
void for_each_header_field(Header& header, Visit&& visit) {
  visit("command_line", header.command_line);
  visit("git_revision", header.git_revision);
  visit("git_dirty", header.git_dirty);
  visit("version", header.version);
  visit("build", header.build);
  visit("device", header.device);
  visit("driver", header.driver);
  visit("libraries", header.libraries);
  visit("machine", header.machine);
  visit("started_utc", header.started_utc);
}

}  // namespace moescope::detail
