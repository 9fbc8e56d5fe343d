#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/schedule/schedule.hpp"

namespace moescope {

/// What is known of a schedule before it is built, and how it looks in every figure, page and notebook. The
/// order of the table is the order in legends.
struct ScheduleInfo {
  std::string_view name;    ///< as rows and the command line name it: to_string(ScheduleOptions)
  std::string_view colour;  ///< "#rrggbb"
  std::string_view marker;  ///< matplotlib's letter
  int point_type = 0;       ///< the same shape among gnuplot's
  /// None for "tuned", which is a choice among those that were measured, and for rules.
  std::optional<ScheduleKind> kind = std::nullopt;
  bool groups = false;   ///< its group size says something
  bool strips = false;   ///< so do strip rule, tile size and whether sums are bit-repeatable
  bool fused = false;    ///< scores and combine are one stage `experts`
  bool library = false;  ///< kernels of a library: no mirror on the CPU, no access stream
  StripRule strip_rule = StripRule::kMinimalCover;
  bool deterministic = true;
  bool rule = false;    ///< expert_centric over the pairs that a TokenRule leaves; arguments follow the name
  bool chosen = false;  ///< picks among the others, hence drawn dotted

  /// The schedule itself rather than a variant of it.
  bool plain() const { return strip_rule == StripRule::kMinimalCover && deterministic; }
};

/// All of them: the names that parse_schedule() reads, rules without their arguments, and "tuned", the best
/// of those that were measured. Colours are those of Okabe and Ito (2008), told apart by colour-blind
/// readers, and darker ones for variants of a schedule; no two share a colour or a marker.
std::span<const ScheduleInfo> schedule_infos();

/// Of the kind without variants.
const ScheduleInfo& schedule_info(ScheduleKind kind);

/// Kinds that are a schedule of their own: all but auto. Without a library's: those that every backend has.
std::vector<ScheduleKind> named_schedules(bool with_library = true);

/// Null for other names: rows of other programs may have any.
const ScheduleInfo* find_schedule_info(std::string_view name);

/// Place in legends: that of the table, behind it for other names.
std::size_t schedule_order(std::string_view name);

/// The table as JSON: what core/schedule/schedules.json holds, for the notebooks.
std::string schedule_infos_json();

}  // namespace moescope
