#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/results/result.hpp"
#include "profiler/limits/ceilings.hpp"
#include "profiler/text/figure.hpp"
#include "profiler/text/table.hpp"

namespace moescope {

/// FLOP that a roofline shows: what the mathematics needs (analytic), or what ran (counted).
enum class RooflineFlop : std::uint8_t { kUseful, kExecuted };

/// One stage of one schedule. What was not recorded is empty.
struct RooflinePoint {
  std::string label;  ///< its layer: layer_names()
  std::string schedule;
  std::string stage;
  double time_s = 0;
  std::optional<double> flop;
  std::optional<double> hbm_bytes;  ///< measured, read and written
  std::optional<double> l2_bytes;   ///< measured: reads, writes, reductions, atomics

  /// FLOP/s; empty without FLOP.
  std::optional<double> performance() const;
  /// FLOP per byte at one level; empty without both or without any bytes.
  std::optional<double> hbm_intensity() const;
  std::optional<double> l2_intensity() const;
};

/// A hierarchical roofline (Williams et al. 2009; hierarchical: Yang et al. 2018): one roof per memory level
/// over the same peak.
struct Roofline {
  DeviceCeilings ceilings;
  RooflineFlop flop = RooflineFlop::kUseful;
  std::set<std::string> recorded;  ///< revision and date of the runs that the times are from
  std::vector<RooflinePoint> points;

  /// Highest FLOP/s that the measured ceilings allow at an intensity; empty when one was not measured.
  std::optional<double> hbm_roof(double intensity) const;
  std::optional<double> l2_roof(double intensity) const;
};

/// From recorded rows: ceilings of the last run that has any, and every stage with a measured time, beside
/// what the same run recorded of it. Layers that differ in any axis, the run included, stay apart. Throws
/// InvalidArgument("rows", ...) when there are no ceilings or no times among them, or when the times are
/// another device's.
Roofline read_roofline(const std::vector<RecordedRun>& runs, RooflineFlop flop);

/// The same of rows of several devices: one of each device that has stages with a time, in order of
/// appearance. Each needs ceilings of its own; throws as read_roofline() does.
std::vector<Roofline> read_rooflines(std::vector<RecordedRun> runs, RooflineFlop flop);

/// Those that rows of any kind hold: of each device that has ceilings, from its runs that counted bytes of a
/// stage. Empty where there are none; what the others throw for is left out.
std::vector<Roofline> profiled_rooflines(std::span<const RecordedRun> runs, RooflineFlop flop);

/// One row of two panels (HBM, L2) per layer, of many the first 12 that have counted bytes. Stages that do
/// the same under every schedule (router_project, router_select, shared_mlp) are drawn once, from the layer's
/// first schedule. A stage without FLOP or bytes has no place on it; the table has it.
Figure roofline_figure(const Roofline& roofline);

/// A layer's label and its stages: every point, with its fraction of both roofs; stages without FLOP with
/// their bandwidth as a fraction of the ceiling.
struct RooflineTable {
  std::string label;
  Table table;
};
std::vector<RooflineTable> roofline_tables(const Roofline& roofline);
/// What its columns mean.
std::string roofline_legend(const Roofline& roofline);

}  // namespace moescope
