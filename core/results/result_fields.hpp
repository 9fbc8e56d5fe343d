#pragma once

#include "core/results/result.hpp"

/// The one list of what a row and a run header hold, in file order, for the writers and the reader of
/// results. Not for use outside core/results/result*.cpp.
namespace moescope::detail {

/// Calls visit(key, member, since) for every field of a row, in column order: those of the point, then those
/// of the value; keys are those of DESIGN section 8 and result.schema.json, `since` is the first schema
/// version that has the field. schema_version and run_id come before these and belong to the run, not to the
/// row.
template <class Row, class Visit>
void for_each_row_field(Row& row, Visit&& visit) {
  for_each_field(row, [&](const PointField& field, auto& value) { visit(field.key, value, field.since); });
  visit("stage", row.stage, 1);
  visit("source", row.source, 1);
  visit("metric", row.metric, 1);
  visit("value", row.value, 1);
  visit("unit", row.unit, 1);
  visit("samples", row.samples, 1);
  visit("spread", row.spread, 1);
  visit("status", row.status, 1);
  visit("reason", row.reason, 1);
  visit("point", row.point, 2);
  visit("repro", row.repro, 2);
}

/// The same for the object under "header"; run_id stands beside it.
template <class Header, class Visit>
void for_each_header_field(Header& header, Visit&& visit) {
  visit("command_line", header.command_line, 1);
  visit("git_revision", header.git_revision, 1);
  visit("git_dirty", header.git_dirty, 1);
  visit("version", header.version, 1);
  visit("build", header.build, 1);
  visit("device", header.device, 1);
  visit("driver", header.driver, 1);
  visit("libraries", header.libraries, 1);
  visit("machine", header.machine, 1);
  visit("started_utc", header.started_utc, 1);
  visit("experiment", header.experiment, 2);
}

/// The same for the object under "point": the line that makes the rows of a sweep's point count.
template <class Point, class Visit>
void for_each_point_field(Point& point, Visit&& visit) {
  visit("id", point.id, 2);
  visit("rows", point.rows, 2);
  visit("status", point.status, 2);
  visit("reason", point.reason, 2);
  visit("elapsed_s", point.elapsed_s, 2);
}

}  // namespace moescope::detail
