#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace moescope {

/// How a schedule looks in every figure, page and notebook. The order of the table is the order in legends.
struct ScheduleInfo {
  std::string_view name;    ///< as rows and the command line name it: to_string(ScheduleOptions)
  std::string_view colour;  ///< "#rrggbb"
  std::string_view marker;  ///< matplotlib's letter
  int point_type = 0;       ///< the same shape among gnuplot's
  bool chosen = false;      ///< picks among the others, hence drawn dotted
};

/// All of them: the names that parse_schedule() reads, and "tuned", the best of those that were measured.
/// Colours are those of Okabe and Ito (2008), told apart by colour-blind readers, and darker ones for
/// variants of a schedule; no two share a colour or a marker.
std::span<const ScheduleInfo> schedule_infos();

/// Null for other names: rows of other programs may have any.
const ScheduleInfo* find_schedule_info(std::string_view name);

/// Place in legends: that of the table, behind it for other names.
std::size_t schedule_order(std::string_view name);

/// The table as JSON: what core/schedule/schedules.json holds, for the notebooks.
std::string schedule_infos_json();

}  // namespace moescope
