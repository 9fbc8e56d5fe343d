#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/cluster/cluster_spec.hpp"
#include "profiler/simulator/sim_validation.hpp"

/// Curves of exchanges from measured ones, and how well they tell sizes that they have not seen.
namespace moescope {

/// One primitive of a library, measured at several sizes.
struct CollectiveSeries {
  std::string primitive;       ///< "all_gather", ...
  std::string launch;          ///< "eager", "graph"
  std::vector<double> bytes;   ///< that a rank sends; ascending
  std::vector<double> time_s;  ///< of the slowest rank
};

/// Measured collectives of one machine.
struct CollectiveRecord {
  std::string machine;
  std::string source;
  std::vector<CollectiveSeries> series;
};

/// Reads {"machine", "source", "ranks", "row_bytes", "rows": [...], "series": [{"primitive", "launch",
/// "row_factor", "time_us": [...]}]}: a size is rows * row_bytes * row_factor. Throws FileError naming `path`
/// and the member: one that is missing, lists of different lengths, sizes that do not ascend, times that are
/// not positive.
CollectiveRecord parse_collectives(std::string_view json, std::string_view path);
CollectiveRecord read_collectives(const std::filesystem::path& file);

/// The curve of a series: its line by least squares of relative errors over sizes from kLargeExchangeBytes
/// on, its small time as measured. Throws InvalidArgument("collectives", ...) for fewer than two such sizes,
/// a line that falls, or no small size.
TransferCurve fit_curve(const CollectiveSeries& series);

/// One size that was kept from the fit.
struct HeldOutSize {
  std::string primitive;
  std::string launch;
  double bytes = 0;
  double measured_s = 0;
  double predicted_s = 0;
};
/// Every size of every series, predicted without it. One of the line: by the line of the series' other
/// sizes. The small one, of which a series has no other: by the median of the other primitives' under the
/// same launch. Throws as fit_curve().
std::vector<HeldOutSize> hold_out(std::span<const CollectiveSeries> series);

/// Of their errors. Throws InternalError for none.
ErrorSummary summarise(std::span<const HeldOutSize> sizes);

}  // namespace moescope
